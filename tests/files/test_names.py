"""How names are shown, and how they become parts of files' names."""

import os
from pathlib import Path

import pytest

from smidgen.errors import SmidgenError, shown
from smidgen.files.names import check_utf8, file_part

CJK = "夕暮れの東京タワーと満開の桜並木を背景にした肖像写真集特別限定版二〇二六年春号" * 3


def test_what_harms_a_terminal_is_shown_as_an_escape_and_all_else_as_it_is() -> None:
    for name in (
        "cat",
        "東京\u3000タワー",
        "a\u00a0b",
        "👩\u200d🚀",
        "م\u200cن",
        "\\n",
        "e\u0301",
        "",
    ):
        assert shown(name) == name
    assert shown("two\nlines\x1b[31m\x7f\0") == "two\\nlines\\x1b[31m\\x7f\\x00"
    assert shown("caf\udce9") == "caf\\udce9"
    assert shown("a\u2028b\u202ec") == "a\\u2028b\\u202ec"
    assert shown("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_a_name_that_is_not_utf8_is_refused_and_shown() -> None:
    check_utf8("東京\u3000タワー\n", "the folder")
    with pytest.raises(SmidgenError, match=r'^the folder "caf\\udce9" .*rename it') as caught:
        check_utf8("caf\udce9", "the folder")
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize(
    "name", ["alpha", "東京\u3000タワー", "a b-c_d (2), e.f", "x" * 200, CJK[:66]]
)
def test_a_name_that_every_system_takes_is_its_own_part(name: str) -> None:
    assert file_part(name) == name


ODD = (
    *(CJK[:83], CJK[:84], "x" * 201, "x" * 202, "é" * 150, "👩\u200d🚀" * 40, "a" + "字" * 100),
    *("a/b", "a\\b", "a:b", "a_b?", "what?", "a\nb", "caf\udce9", "a\0"),
    *("", ".", "..", "...", "a.", "a ", "a. .", " .", "con", "CON", "nul.txt", "Com1", "lpt9.a.b"),
)


def test_parts_of_names_fit_on_every_disk_and_stay_different(tmp_path: Path) -> None:
    parts = [file_part(name) for name in ODD]
    assert len(set(parts)) == len(ODD)
    for part in parts:
        assert len(part.encode("utf-8")) <= 200
        assert part not in ODD
        assert part == part.rstrip(". ")
        assert not set(part) & set('<>:"/\\|?*\n\0')
        assert part.partition(".")[0].lower() not in ("con", "nul", "com1", "lpt9")
        assert file_part(part) == part
        (tmp_path / f"{123456:06d}-{part}.png").write_bytes(b"x")
        (tmp_path / part).mkdir()
    assert len(os.listdir(tmp_path)) == 2 * len(ODD)  # noqa: PTH208


def test_a_part_is_cut_between_characters_and_keeps_its_beginning() -> None:
    for most in range(16, 60):
        part = file_part(CJK, most)
        kept, _, _ = part.rpartition("~")
        assert CJK.startswith(kept)
        assert most - 3 < len(part.encode("utf-8")) <= most
