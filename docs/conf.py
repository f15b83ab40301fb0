"""Sphinx configuration.  Build with ``bash scripts/docs.sh``: warnings are errors, and nothing is downloaded."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever is installed

import rmm_gnn

project = "rmm_gnn"
copyright = "the rmm_gnn authors"
version = release = rmm_gnn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "examples"]

# `$...$`, and `$$...$$ (label)`, which is numbered and can be referred to.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"rmm_gnn {version}"
html_show_sourcelink = False

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
# A method without a docstring of its own is described once, in the base class; those of torch.nn.Module, in torch.
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Shapes"]

# Every reference must lead somewhere (`-n`), except out of this project: that takes inventories from the network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|torch_geometric|transformers|Tensor)(\..*)?"),
    ("py:.*", r"(abc|collections|contextlib|enum|os|typing)\..*"),
    ("py:class", r"rmm_gnn\..*\.ModelT"),  # a type variable: the model that is given is the one that is returned
]


def _show_public_bases(app, name, cls, options, bases):
    """Name bases that readers can look up: in place of a private one, what that one is made of."""

    def known(base):
        if not base.__module__.startswith("rmm_gnn.") or base in (rmm_gnn.Sketch, rmm_gnn.codecs.Codec):
            return [base]
        return [found for parent in base.__bases__ for found in known(parent)]

    # A base that another one inherits from goes without saying, as `object` does.
    found = dict.fromkeys(base for given in bases if isinstance(given, type) for base in known(given))
    bases[:] = [base for base in found if not any(issubclass(other, base) for other in found if other is not base)]


def _keep_initials(app, what, name, obj, options, lines):
    """Keep "M. Charikar" at the start of a line from being item M of a list."""
    lines[:] = [re.sub(r"^(\s*)(?=[A-Z]\. [A-Z])", r"\1\\", line) for line in lines]


def setup(app):
    app.connect("autodoc-process-bases", _show_public_bases)
    app.connect("autodoc-process-docstring", _keep_initials)
