"""What pages promise beside their blocks: lengths, links, names of files, numbers of the log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.docs.blocks import PAGES, ROOT, Block, all_blocks
from tools.docs.benchmark_plot import read_log
from tools.docs.sections import with_sections

README = ROOT / "README.md"
_TREES = (
    "briton",
    "server",
    "engine_builder",
    "tests",
    "tools",
    "benchmarks",
    "examples",
    "docs",
    "constraints",
    "proto",
)


def _inline(page: Path, kind: str) -> list[Token]:
    tokens = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    return [child for token in tokens for child in token.children or () if child.type == kind]


def test_readme_is_short() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    """Within docs/ `make docs` looks at them too, anchors included."""
    targets = [str(link.attrGet("href")) for link in _inline(page, "link_open")]
    targets += [str(image.attrGet("src")) for image in _inline(page, "image")]
    local = [target.partition("#")[0] for target in targets if not re.match(r"https?:|#", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page: Path) -> None:
    """A file that was moved leaves its name behind in pages."""
    sources = {path.name for tree in _TREES for path in (ROOT / tree).rglob("*.py")}
    missing = []
    for token in _inline(page, "code_inline"):
        name = token.content.rstrip("/")
        is_path = re.fullmatch(rf"({'|'.join(_TREES)})/[\w./-]+", name) is not None
        is_module = re.fullmatch(r"\w+\.py", name) is not None
        if (is_path and not (ROOT / name).exists()) or (is_module and name not in sources):
            missing.append(name)
    assert missing == []


def test_the_tree_of_files_is_the_repositorys() -> None:
    """Its indentation is that of the folders; what stands after two spaces says what it is."""
    tree = next(block for block in all_blocks() if block.page == "docs/architecture.md" and block.language == "text")
    folder, missing = ROOT, []
    for line in tree.text.splitlines():
        names = line.strip().split("  ")[0].split() + [name for name in line.split() if name.endswith(".py")]
        base = folder if line.startswith(" ") else ROOT
        missing += [name for name in names if not (base / name).exists()]
        if not line.startswith(" "):
            folder = ROOT / names[0]
    assert missing == []


EXCERPTS = [block for block in all_blocks() if block.reason.startswith("an excerpt of ") and ".py" in block.reason]


def test_there_are_excerpts() -> None:
    assert len(EXCERPTS) == 5


@pytest.mark.parametrize("block", EXCERPTS, ids=str)
def test_excerpts_are_of_the_code_as_it_is(block: Block) -> None:
    """Line by line, whatever the indentation."""
    code = (ROOT / block.reason.removeprefix("an excerpt of ")).read_text(encoding="utf-8")
    lines = {line.strip() for line in code.splitlines()}
    assert [line for line in block.text.splitlines() if line.strip() not in lines] == []


def test_metrics_that_pages_name_exist() -> None:
    """A metric that was renamed leaves its name behind in pages, dashboards' queries included."""
    table = set(re.findall(r"^\| `(briton_\w+)`", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE))
    others = {"briton_server", "briton_engine_builder", "briton_version"}
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):
        named = set(re.findall(r"(?<![\w./-])briton_[a-z_]+", page.read_text(encoding="utf-8"))) - others
        assert named <= table, page


def test_numbers_of_the_readme_are_the_logs() -> None:
    text = " ".join(README.read_text(encoding="utf-8").split())
    figures = read_log(ROOT / "benchmarks" / "LOG.md")
    llama_cpp, genai, lookahead = (dict(part) for part in (figures.llama_cpp, figures.genai, figures.lookahead))
    many, one = "16 requests, 128 + 128 tokens", "decode, 1 request"
    assert f"{llama_cpp[many]:.1f} times llama.cpp's tokens a second** with 16 requests" in text
    assert f"and {genai[many]:.2f} times openvino-genai's" in text
    assert (
        f"With one request it is {llama_cpp[one]:.2f} of llama.cpp's and {genai[one]:.2f} of openvino-genai's" in text
    )
    clients, tokens_per_s, _, _, first_token, _ = figures.serving[-1]
    assert f"with {clients} clients: {float(tokens_per_s):.0f} output tokens a second" in text
    assert f"after {first_token.partition(' ')[0]} ms (median)" in text
    assert f"**{lookahead['edit']:.1f} times the tokens a second on edits of a file" in text
    assert f"{lookahead['chat']:.1f} times on chat**" in text


def test_a_section_that_one_side_lacks_is_an_error() -> None:
    """A page that lost its marks would keep an old table for ever."""
    page = "a\n<!-- generated: x -->\nold\n<!-- end of generated -->\nb\n"
    assert "new" in with_sections(page, {"x": "new"}, README)
    assert "old" not in with_sections(page, {"x": "new"}, README)
    for text, sections in ((page, {"y": "new"}), ("a\n", {"x": "new"}), (page, {})):
        with pytest.raises(ValueError, match="generated sections"):
            with_sections(text, sections, README)
