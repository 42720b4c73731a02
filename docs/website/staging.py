"""The folder that Sphinx reads: pages of docs/, notebooks, what is made of the code, and links that lead between them.

Documents link to files of the repository, so that they can be read there. Here a link to a page leads to that page, and
one to any other file to a page that shows it.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
from pathlib import Path, PurePosixPath

from . import api, environments, policies
from .markdown import slug

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".patch": "diff", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".pxd": "cython"}
UNLISTED, TABLE = "<!-- unlisted pages -->", "<!-- environments -->"
TERM = re.compile(r"^- \*\*(.+?)\*\*: (.+)$", re.MULTILINE)
PROJECT = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


class Staging:
    """Texts and files by their place in the folder."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.copies: dict[str, Path] = {}
        self._places: dict[Path, str] = {}
        self._collect()

    def _collect(self) -> None:
        docs = ROOT / "docs"
        for file in sorted(docs.rglob("*")):
            inside = file.relative_to(docs)
            if file.is_file() and inside.parts[0] != "website" and not inside.name.startswith("."):
                self._places[file] = inside.as_posix()
        for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
            self._places[file] = f"tutorials/{file.name}"
        for name, place in PROJECT.items():
            self._places[ROOT / name] = place
        for file, place in list(self._places.items()):
            self._add(file, place)
        self.texts.update(generated())
        start = (
            "Here are [policies](policies.md), the [API](api/index.md), and every environment:\n\n"
            + environments.listed("environments/")
        )
        self.texts["index.md"] = self._listed(self.texts["index.md"]).replace(TABLE, start)
        self.texts["glossary.md"] = glossary(self.texts["glossary.md"])
        for place, text in list(self.texts.items()):  # a folder of pages without a list of its own
            if place.endswith("/index.md") and not TOCTREE.search(text):
                self.texts[place] = f"{text}\n\n```{{toctree}}\n:hidden:\n:glob:\n\n*\n```\n"

    def _add(self, file: Path, place: str) -> None:
        if file == ROOT / "README.md":  # the start page takes its place
            return
        if file.suffix == ".md":
            self.texts[place] = self._linked(file.read_text(encoding="utf-8"), file, place)
        elif file.suffix == ".ipynb":
            self.texts[place] = self._notebook(file, place)
        else:
            self.copies[place] = file

    def _notebook(self, file: Path, place: str) -> str:
        notebook = json.loads(file.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = self._linked("".join(cell["source"]), file, place)
                cell["source"] = text.splitlines(keepends=True)
        return json.dumps(notebook)

    def _linked(self, text: str, file: Path, place: str) -> str:
        """With links that lead to places in the folder; code stays as it is."""
        blocks, position, out = FENCE.finditer(text), 0, []
        for block in blocks:
            out += [self._relinked(text[position : block.start()], file, place), block[0]]
            position = block.end()
        return "".join([*out, self._relinked(text[position:], file, place)])

    def _relinked(self, text: str, file: Path, place: str) -> str:
        def lead(found: re.Match[str]) -> str:
            link = found[2]
            if "://" in link or link.startswith(("mailto:", "<")):
                return found[0]
            target = (file.parent / link).resolve()
            if not target.exists() or ROOT not in target.parents or target.is_dir():
                return found[0]  # Sphinx complains of it
            leads = os.path.relpath(self._place(target), PurePosixPath(place).parent)
            return f"{found[1]}{PurePosixPath(leads)}{found[3]}"

        return LINK.sub(lead, text)

    def _place(self, target: Path) -> str:
        """Where a file is; one that has no place gets a page that shows it."""
        if target not in self._places:
            inside = target.relative_to(ROOT).as_posix()
            place = f"files/{inside}" if target.suffix == ".md" else f"files/{inside}.md"
            self._places[target] = place
            text = target.read_text(encoding="utf-8")
            if target.suffix == ".md":
                self.texts[place] = "---\norphan: true\n---\n\n" + self._linked(text, target, place)
            else:
                language = LANGUAGES.get(target.suffix, "text")
                self.texts[place] = f"---\norphan: true\n---\n\n# {inside}\n\n`````{language}\n{text}\n`````\n"
        return self._places[target]

    def _listed(self, index: str) -> str:
        """The start page: its lists without what is not there, the last one with the pages that no list names."""
        names = [place.rpartition(".")[0] for place in self.texts]
        below = [name for name in names if name.startswith("files/") or self._has_index(name, names)]
        listed = {"index", *below}

        def present(found: re.Match[str]) -> str:
            lines = []
            for line in found[0].splitlines():
                if line and line[0] not in ":<`":
                    fitting = [
                        name for name in names if fnmatch.fnmatch(name, line) and line.count("/") == name.count("/")
                    ]
                    listed.update(fitting)
                    lines += [line] if fitting else []
                else:
                    lines.append(line)
            return "\n".join(lines)

        index = TOCTREE.sub(present, index)
        assert UNLISTED in index, f"docs/index.md has no line {UNLISTED}"
        return index.replace(UNLISTED, "\n".join(name for name in names if name not in listed))

    @staticmethod
    def _has_index(name: str, names: list[str]) -> bool:
        """Whether a page is in a folder whose index lists its pages."""
        folder, _, last = name.rpartition("/")
        return bool(folder) and last != "index" and f"{folder}/index" in names

    def write(self, folder: Path) -> None:
        """Write what has changed, and remove what is gone."""
        wanted = {folder / place for place in (*self.texts, *self.copies)}
        for old in folder.rglob("*"):
            if old.is_file() and old not in wanted and old.parent.name != "episodes":
                old.unlink()
        for place, text in self.texts.items():
            target = folder / place
            if not target.exists() or target.read_text(encoding="utf-8") != text:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
        for place, source in self.copies.items():
            target = folder / place
            if not target.exists() or target.read_bytes() != source.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


def glossary(text: str) -> str:
    """With terms that can be searched for and linked to."""
    listed = TERM.sub(r"\1\n  \2\n", text)
    return re.sub(r"^(## .+\n)\n([^#]+)", r"\1\n```{glossary}\n\2```\n\n", listed, flags=re.MULTILINE)


def generated() -> dict[str, str]:
    """Every page that is made of the code, by its place."""
    return {
        "environments/index.md": environments.index(),
        **{f"environments/{slug(name)}.md": environments.page(name) for name in environments.ENVIRONMENTS},
        **{
            f"environments/{slug(name)}.md": environments.router_page(name) for name in environments.ROUTER_ENVIRONMENTS
        },
        "policies.md": policies.page(),
        **api.pages(),
    }
