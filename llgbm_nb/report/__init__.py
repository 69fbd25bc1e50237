"""What runs the notebooks, and what they leave.

Nothing else imports from here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "parameters": ["check", "set_up", "versions"],
    "run": ["command", "run_report"],
    "notebook_page": ["strip_widgets", "to_html"],
    "findings": ["propose_bases", "write_deltas", "write_groups", "write_search", "write_students",
                 "write_summary"],
    "verdict": ["Findings", "verdict"],
    "page": ["write_page"],
    "uses_section": ["Uses", "add_uses"],
    "export": ["Only", "export_for_training", "left_out_text"],
})  # fmt: skip
