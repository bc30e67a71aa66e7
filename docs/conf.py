"""Pages from the README, the guides, the notebooks, the recorded results and the docstrings: ``make docs``.

The sources are where they are read without a build, so the repository itself is the source folder.
"""

import scpl_jax

project = "scpl_jax"
author = "the scpl_jax authors"
copyright = "the scpl_jax authors, Apache License 2.0"
release = scpl_jax.__version__

root_doc = "docs/index"
include_patterns = [
    "README.md",
    "SECURITY.md",
    "docs/*.md",
    "docs/api/*.md",
    "docs/design/architecture.md",
    "notebooks/*.ipynb",
    "experiments/*/README.md",
]
exclude_patterns = [".*", "runs", "data", "docs/build"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]

html_theme = "furo"
html_title = "scpl_jax"
_narrow = {"code-font-size": "var(--font-size--small--3)"}  # a line of the notebooks fits
html_theme_options = {"light_css_variables": _narrow, "dark_css_variables": _narrow}
html_extra_path = ["redirect"]  # index.html, which leads to the root document

nb_execution_mode = "off"  # they are stored with their outputs
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # shapes and dtypes are in the text
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
