"""Settings of Sphinx."""

from __future__ import annotations

import itertools
import operator
import re
from typing import Any

import numpy.typing
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import stringify_annotation

import llmsched_env
from website.api import MOCKED

project = "llmsched-env"
author = "The llmsched-env authors"
project_copyright = f"2026, {author}"
version = release = llmsched_env.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton"]
default_role = "py:obj"

# A function or method that is named must be there. Types of other libraries have no pages here, and short names may be
# those of anything; the others are not public.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:(class|obj|exc)", r".*"),
    (r"py:(data|func)", r"(.*\.)?(MAX_\w+|MOVES_PER_REQUEST|solve)"),
]

myst_heading_anchors = 4
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"
nb_merge_streams = True

autodoc_mock_imports = MOCKED
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"llmsched-env {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["offline.js"]
html_copy_source = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"

for field in PyObject.doc_field_types:
    if field.name == "variable":
        field.label = "Attributes"

ARRAY = re.compile(r"~numpy\.ndarray\[tuple\[~typing\.Any, \.\.\.\], ~numpy\.dtype\[(~?[\w.]+)\]\]")
ARRAY_LIKE = stringify_annotation(numpy.typing.ArrayLike, "smart")
SPECIFICATIONS = ("llmsched_env.env.LLMSchedEnv", "llmsched_env.replicas.env.RouterEnv")


def point_to_the_pages(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """The docstring of an environment is Markdown, and has pages of its own."""
    if name in SPECIFICATIONS and len(lines) > 1:
        lines[1:] = ["", "Spaces, rewards and arguments: :doc:`the page of each id </environments/index>`.", ""]


def short_types(app: Sphinx, what: str, name: str, thing: Any, options: Any, given: str, returned: str) -> Any:
    """Arrays by the names that the sources give their types."""
    return tuple(
        text and ARRAY.sub(r"NDArray[\1]", text.replace(ARRAY_LIKE, "ArrayLike")) for text in (given, returned)
    )


def keep_colons(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon, in the first line about an attribute, for its type."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = re.sub(r"(?<=\w): ", " \N{EN DASH} ", lines[0])


def find_by_last_name(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Node) -> Any:
    """A name without its module, as docstrings write it, or with the module that defines it, where that is not public.

    Of several things that are called so it is the one that is nearest to the module of the text, or none.
    """
    target = node["reftarget"]
    if node.get("refdomain") != "py" or not re.fullmatch(r"[\w.]+", target):
        return None
    domain, last = env.domains["py"], target.rpartition(".")[2]
    near = target.rpartition(".")[0] or node.get("py:module") or ""
    closeness = {
        name: sum(itertools.accumulate(map(operator.eq, name.split("."), near.split(".")), min))
        for name in domain.data["objects"]
        if name.endswith(f".{target}") or (target.startswith("llmsched_env.") and name.endswith(f".{last}"))
    }
    best = [name for name, close in closeness.items() if close == max(closeness.values())]
    places = {(domain.data["objects"][name].docname, domain.data["objects"][name].node_id) for name in best}
    return (
        domain.resolve_xref(env, node["refdoc"], app.builder, "obj", best[0], node, content)
        if len(places) == 1
        else None
    )


def setup(app: Sphinx) -> None:
    """Connect them."""
    app.connect("autodoc-process-docstring", point_to_the_pages)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("autodoc-process-signature", short_types)
    app.connect("missing-reference", find_by_last_name)
