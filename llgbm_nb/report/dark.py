"""Pictures on a dark page: white, black and grey change places, and colours stay, a domain's among them.

dark.svg beside this module is the filter. A pixel whose channels differ is a colour.
"""

from pathlib import Path
from urllib.parse import quote

FILTER = f'url("data:image/svg+xml,{quote(Path(__file__).with_suffix(".svg").read_text().replace(chr(10), ""))}#dark")'
ON_A_PAGE = f"@media (prefers-color-scheme: dark) {{img {{filter: {FILTER}}}}}"
TURNED_BACK = ON_A_PAGE.replace(
    FILTER, f"{FILTER} hue-rotate(180deg) invert(1)"
)  # where all of the page is turned over
IN_JUPYTERLAB = f'<style>[data-jp-theme-light="false"] .jp-RenderedImage img {{filter: {FILTER}}}</style>'
