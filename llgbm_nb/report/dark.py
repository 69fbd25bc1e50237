"""Pictures on a dark page: white, black and grey change places, and colours stay, a domain's among them.

dark.svg beside this module is the filter. Where a pixel's channels differ, and within letters there, it is a colour.
"""

from pathlib import Path
from urllib.parse import quote

FILTER = f'url("data:image/svg+xml,{quote(Path(__file__).with_suffix(".svg").read_text().replace(chr(10), ""))}#dark")'
IN_JUPYTERLAB = f'<style>[data-jp-theme-light="false"] .jp-RenderedImage img {{filter: {FILTER}}}</style>'
