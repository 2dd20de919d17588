"""What the conversations of a file become: the same windows whatever its form, each within the model's context."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig

import memvec
from memvec.errors import ConfigError, InputError
from tests.helpers.configs import compose
from tests.helpers.conversations import CHAT, generation_overrides, read_lines, write_lines
from tests.helpers.refusals import refused
from tests.test_generate import DRAWN, texts

Configure = Callable[..., DictConfig]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def texts_of_chat(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is written about `CHAT` as JSON lines."""
    root = tmp_path_factory.mktemp("chat")
    overrides = generation_overrides(write_lines(root / "conversations.jsonl", CHAT), root / "run", llama)
    memvec.generate(compose(overrides, config_name="generate"))
    return texts(root / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "json", "openai.jsonl"])
def test_every_form_of_the_input_gives_the_same(
    kind: str, texts_of_chat: dict[str, str], tiny_generation: Configure, tmp_path: Path
) -> None:
    path = tmp_path / f"conversations.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(CHAT), path)
    elif kind == "json":
        path.write_text(json.dumps(CHAT), encoding="utf-8")
    else:
        names = {"speaker": "role", "text": "content", "role": "speaker", "content": "text"}
        swapped = [[{names[name]: said for name, said in m.items()} for m in row["messages"]] for row in CHAT]
        write_lines(path, [{**row, "messages": messages} for row, messages in zip(CHAT, swapped, strict=True)])
    cfg = tiny_generation(path)
    memvec.generate(cfg)
    assert texts(cfg.output_dir) == texts_of_chat


@pytest.mark.slow
def test_a_document_gives_what_its_text_gives_in_a_row(
    scripted: Path, write_conversations: Write, tiny_generation: Configure, tmp_path: Path
) -> None:
    lines = [f"Line {n} of a document." for n in range(12)]
    path = tmp_path / "notes.txt"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    document = tiny_generation(path, *DRAWN, model=scripted, output="document")
    memvec.generate(document)
    row = tiny_generation(write_conversations([{"id": "notes", "messages": "\n".join(lines)}]), *DRAWN, model=scripted)
    memvec.generate(row)
    assert texts(document.output_dir) == texts(row.output_dir)
    found = read_lines(Path(document.output_dir) / "memories.jsonl")
    assert len(found) > 1
    assert {line["conversation_id"] for line in found} == {"notes"}
    ranges = [(line["message_start"], line["message_end"]) for line in found]
    assert (ranges[0][0], ranges[-1][1]) == (0, 11)
    assert all(later[0] == earlier[1] - 1 for earlier, later in pairwise(ranges))  # overlap of 2


def test_a_long_conversation_is_cut_into_windows_that_fit(
    write_conversations: Write, tiny_generation: Configure
) -> None:
    """The tiny model takes 256 tokens, of which 12 are for the answer; a message longer than that comes in pieces."""
    said = ["This is a sentence of the conversation. " * count for count in (1, 2, 40, 1)]
    path = write_conversations([{"id": 7, "messages": [{"role": "user", "content": text} for text in said]}])
    cfg = tiny_generation(path, "data.window_tokens=null")
    counts = memvec.generate(cfg).counts
    raw = [line for line in read_lines(Path(cfg.output_dir) / "raw.jsonl") if line["attempt"] == 1]
    assert counts.windows == len(raw) > 4
    assert counts.truncated == 0
    assert {number for line in raw for number in range(line["message_start"], line["message_end"] + 1)} == {0, 1, 2, 3}
    assert {line["conversation_id"] for line in raw} == {7}


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused(
    write_conversations: Write, tiny_generation: Configure
) -> None:
    with refused(ConfigError, "generation.max_new_tokens", 256, found="the model takes 256 tokens"):
        memvec.generate(tiny_generation(write_conversations(), "generation.max_new_tokens=256"))
    room = "leaves no room for a text: the prompt template alone takes"
    with refused(ConfigError, "generation.max_new_tokens", 250, found=room, advice="a model with a longer context"):
        memvec.generate(tiny_generation(write_conversations(), "generation.max_new_tokens=250"))


def test_a_date_column_that_no_row_has_is_an_error(write_conversations: Write, tiny_generation: Configure) -> None:
    path = write_conversations()
    with refused(
        InputError, "conversations.jsonl", found="no row has the date column 'when'", advice="set data.date_column"
    ):
        memvec.generate(tiny_generation(path, "data.date_column=when"))
    with refused(InputError, path, found="no row has the id column 'key'"):
        memvec.generate(tiny_generation(path, "data.id_column=key"))


def test_the_summary_says_that_ids_of_documents_are_names(
    scripted: Path, tiny_generation: Configure, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("\n".join(f"Line {n} of a document." for n in range(12)), encoding="utf-8")
    summary = memvec.generate(tiny_generation(tmp_path / "notes.txt", *DRAWN, model=scripted))
    assert "ids        names of files" in summary.lines()
