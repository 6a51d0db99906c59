"""Help pages and translations: all of every node, in English and Chinese, and nothing that is no longer there."""

import json
import re

import frozen
import pytest
from fake_comfy import PROJECT

NODES = frozen.read()
DOCS, LOCALES = PROJECT / "web" / "docs", PROJECT / "locales"
INPUTS = {"en": "## Inputs", "zh": "## 输入"}
OUTPUTS = {"en": "## Outputs", "zh": "## 输出"}
SECTIONS = {
    "en": ("## When to use it", "## What it costs", "## If it does not work"),
    "zh": ("## 什么时候用", "## 开销", "## 出错怎么办"),
}
LANGUAGES = ("en", "zh")
HAN = re.compile(r"[\u4e00-\u9fff]")


def page(node: str, language: str) -> str:
    return (DOCS / node / f"{language}.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands under a heading."""
    assert text.count(f"{title}\n") == 1, title
    return text.split(f"{title}\n")[1].split("\n## ")[0]


def translations(language: str, name: str) -> dict:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def test_every_node_has_a_page_in_both_languages_and_no_page_is_left_over():
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*") if path.is_file()} == {
        f"{node}/{language}.md" for node in NODES for language in LANGUAGES
    }


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_a_page_has_every_input_and_output_and_what_one_needs_to_know(node, language):
    text = page(node, language)
    rows = re.findall(r"^\| `(\w+)`", section(text, INPUTS[language]), re.MULTILINE)
    assert rows == [slot["id"].split(".")[-1] for slot in NODES[node]["inputs"]]
    listed = re.findall(r"^- `(\w+)`", section(text, OUTPUTS[language]), re.MULTILINE)
    assert listed == [slot["name"] for slot in NODES[node]["outputs"]]
    assert not [title for title in SECTIONS[language] if title not in text]
    assert not text.startswith("#"), "ComfyUI puts the node's name above the page"
    assert "](" not in text, "pages stand alone: no links, no remote pictures"


@pytest.mark.parametrize("node", NODES)
def test_both_pages_say_the_same_amount(node):
    shape = {language: re.findall(r"^(#+|\||-) ", page(node, language), re.MULTILINE) for language in LANGUAGES}
    assert shape["en"] == shape["zh"]


@pytest.mark.parametrize("node", NODES)
def test_chinese_pages_are_chinese(node):
    text = page(node, "zh")
    assert len(HAN.findall(text)) > 150
    for line in text.splitlines():
        if line.startswith("|") and "`" not in line and "---" not in line:
            assert HAN.search(line), line


def test_english_words_are_those_of_the_schemas(nodes):
    from tools import freeze_nodes

    now = {name: freeze_nodes.words(node.define_schema()) for name, node in nodes.items()}
    assert translations("en", "nodeDefs") == now, "write them anew with `python -m tools.freeze_nodes`"


def test_chinese_words_cover_the_same_and_are_chinese():
    english, chinese = translations("en", "nodeDefs"), translations("zh", "nodeDefs")
    assert chinese.keys() == english.keys() == NODES.keys()
    for name, node in chinese.items():
        assert node.keys() == english[name].keys()
        assert node["inputs"].keys() == english[name]["inputs"].keys(), name
        assert node["outputs"].keys() == english[name]["outputs"].keys(), name
        assert HAN.search(node["description"])
        for slot in [*node["inputs"].values(), *node["outputs"].values()]:
            assert HAN.search(slot["tooltip"]), slot


def test_socket_types_and_the_menu_have_names():
    types = {s["type"] for node in NODES.values() for side in node.values() for s in side}
    ours = {kind for kind in types if kind.startswith("LIVEAVATAR_")}
    for language in LANGUAGES:
        words = translations(language, "main")
        assert words.keys() == {"nodeCategories", "dataTypes", "templateWorkflows"}
        assert words["dataTypes"].keys() == ours and words["nodeCategories"].keys() == {"Live Avatar"}
        folders = words["templateWorkflows"]["category"]
        assert folders.keys() == {"ComfyUI-LiveAvatar", "live-avatar"}, "the folder by hand, and by the registry"


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_hold_no_character_that_the_browser_would_interpret(language):
    """vue-i18n reads { } as a place for a value, @ as a link and | as a plural."""
    for path in (LOCALES / language).glob("*.json"):
        strings = re.findall(r': "((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8"))
        assert strings and not [text for text in strings if re.search(r"[{}@|]", text)]


def test_no_other_language_is_begun():
    assert {path.name for path in LOCALES.iterdir()} == set(LANGUAGES)
    for language in LANGUAGES:
        assert {path.name for path in (LOCALES / language).iterdir()} == {"main.json", "nodeDefs.json"}
