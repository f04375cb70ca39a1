"""Sphinx's settings for `make docs`: the guides of this folder and the docstrings, as pages."""

from __future__ import annotations

import cylstm

project = "cylstm"
copyright = author = "cylstm developers"
version = release = cylstm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns: list[str] = []
html_theme = "furo"
html_title = f"cylstm {release}"

# Docstrings are NumPy's kind; single backquotes mean code.
default_role = "code"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_param = napoleon_use_rtype = False  # types are prose here
autodoc_default_options = {
    "members": True,
    "inherited-members": "dict,tuple",
    "special-members": "__call__",
}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give shapes and dtypes, which say more
toc_object_entries_show_parents = "hide"

# Guides are also read where they lie; links from them to sources lead there.
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]
