"""What is read out of an output: every form that models write, nothing that they did not write, and never an error."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memvec.generation.echoes import Instructions, PromptContent
from memvec.generation.parser import Outcome, Parsed, parse
from tests.helpers.processes import SLOWNESS

FACTS = ("Jon likes green tea.", "Gina's store opens at 9:30 in Lyon", "她喜欢喝茶，也养猫")


def memories(output: str, *, is_cut: bool = False, prompt: PromptContent | None = None) -> tuple[str, ...]:
    parsed = parse(output, is_cut=is_cut, prompt=prompt)
    assert parsed.outcome is Outcome.MEMORIES, parsed
    return parsed.memories


FORMS: dict[str, Callable[[tuple[str, ...]], str]] = {
    "JSON list": lambda facts: json.dumps(facts),
    "JSON list, indented": lambda facts: json.dumps(facts, indent=2, ensure_ascii=False),
    "JSON objects": lambda facts: json.dumps(
        [{"id": n, "text": fact, "tags": ["a b"]} for n, fact in enumerate(facts)]
    ),
    "JSON under a key": lambda facts: json.dumps({"facts": facts, "reason": "they were said so"}),
    "JSON in a fence, with chatter": lambda facts: (
        f"Sure! Here you go:\n```json\n{json.dumps(facts)}\n```\nAnything else?"
    ),
    "JSON objects, one a line": lambda facts: "\n".join(json.dumps({"memory": fact}) for fact in facts),
    "JSON, numbered keys": lambda facts: json.dumps({f"fact_{n}": fact for n, fact in enumerate(facts)}),
    "bullets": lambda facts: "\n".join(f"- {fact}" for fact in facts),
    "stars, spaced out": lambda facts: "\n\n".join(f"  *   {fact}" for fact in facts),
    "dots": lambda facts: "\n".join(f"•{fact}" for fact in facts),
    "numbers": lambda facts: "\n".join(f"{n}. {fact}" for n, fact in enumerate(facts, 1)),
    "numbers in brackets": lambda facts: "\n".join(f"({n}) {fact}" for n, fact in enumerate(facts, 1)),
    "Chinese numbers": lambda facts: "\n".join(f"{n}、{fact}" for n, fact in zip("一二三", facts, strict=False)),
    "Chinese brackets": lambda facts: "\n".join(f"（{n}）{fact}；" for n, fact in enumerate(facts, 1)),
    "circled numbers": lambda facts: "\n".join(f"{n} {fact}" for n, fact in zip("①②③", facts, strict=False)),
    "labels": lambda facts: "\n".join(f"Fact {n}: {fact}" for n, fact in enumerate(facts, 1)),
    "Chinese labels": lambda facts: "\n".join(f"事实{n}：{fact}" for n, fact in enumerate(facts, 1)),
    "quoted bullets": lambda facts: "\n".join(f'- "{fact}",' for fact in facts),
    "bullets before numbers": lambda facts: "\n".join(f"- {n}. {fact}" for n, fact in enumerate(facts, 1)),
    "bullets with a heading": lambda facts: "**Facts**\n\nAbout Jon:\n" + "\n".join(f"- {fact}" for fact in facts),
    "a tag each": lambda facts: "".join(f"<memory>{fact}</memory>\n" for fact in facts),
    "a tagged section": lambda facts: "Let me see.\n<memories>\n" + "\n".join(facts) + "\n</memories>\nDone.",
    "lines": lambda facts: "\n".join(facts),
    "lines with chatter": lambda facts: (
        "Here are the facts:\n\n" + "\n".join(facts) + "\n\nLet me know if you need more."
    ),
    "after reasoning": lambda facts: "<think>\n- Not this one.\n</think>\n" + "\n".join(f"- {fact}" for fact in facts),
    "after reasoning that the prompt began": lambda facts: "- Not this.\n</think>\n\n" + json.dumps(facts),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_facts_in_order(form: str) -> None:
    assert [text.rstrip("；") for text in memories(FORMS[form](FACTS))] == list(FACTS)


@pytest.mark.parametrize("form", FORMS)
def test_the_end_of_a_cut_output_costs_nothing_but_its_last_item(form: str) -> None:
    """Cut anywhere, it gives the first facts whole, or none; never a piece of one."""
    output = FORMS[form](FACTS)
    for length in range(len(output)):
        cut = parse(output[:length], is_cut=True).memories
        assert all(text.rstrip("；") in FACTS or _is_sentence_so_far(text) for text in cut), (output[:length], cut)


def _is_sentence_so_far(text: str) -> bool:
    """Whether a piece is one that no reader could tell from a whole fact, or says nothing about anybody."""
    return text.endswith((".", "'", '"', "”", "。")) or not any(text in fact for fact in FACTS)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ('["Jon likes tea", "Gina has a', ("Jon likes tea",)),
        ('[{"text": "Jon likes tea", "date": "May"}, {"text": "Gina', ("Jon likes tea",)),
        ('{"facts": ["Jon likes tea", "Gina ran"', ("Jon likes tea", "Gina ran")),
        ("- Jon likes tea.\n- Gina has a", ("Jon likes tea.",)),
        ("- Jon likes tea.\n- Gina has a cat.", ("Jon likes tea.", "Gina has a cat.")),
        ("- Jon likes tea\n- Gina has a cat\n", ("Jon likes tea", "Gina has a cat")),
        ("1. Jon likes tea. 2. Gina has a cat. 3. Tom is", ("Jon likes tea.", "Gina has a cat.")),
        ("<memories>\n- Jon likes tea\n- Gina is", ("Jon likes tea",)),
        ("<memory>Jon likes tea</memory><memory>Gina is", ("Jon likes tea",)),
    ],
)
def test_a_cut_output_keeps_its_finished_items(output: str, expected: tuple[str, ...]) -> None:
    assert memories(output, is_cut=True) == expected


def test_an_output_that_ended_keeps_its_last_item() -> None:
    assert memories("- Jon likes tea\n- Gina has a cat") == ("Jon likes tea", "Gina has a cat")


@pytest.mark.parametrize(
    "output",
    [
        *(
            "NONE",
            "None.",
            "- NONE",
            "N/A",
            "[]",
            "{}",
            '{"facts": []}',
            "```json\n[]\n```",
            "<memories></memories>NONE",
        ),
        *("Nothing to remember.", "There is nothing worth remembering in this conversation.", "No new facts."),
        *("无", "无。", "没有值得记住的信息。", "对话中没有需要记住的内容", "<think>Hm.</think>\n\nNONE"),
    ],
)
def test_nothing_to_remember_is_an_answer(output: str) -> None:
    assert parse(output) == Parsed(Outcome.NOTHING)


@pytest.mark.parametrize(
    "output", ["No longer works at the bank", "无法吃花生", "Nothing scares Jon.", "- There is a cat."]
)
def test_what_only_begins_like_nothing_is_a_memory(output: str) -> None:
    assert memories(output) == (output.removeprefix("- "),)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", "the output is empty"),
        (" \n ", "the output is empty"),
        ("<think>They talk about", "only reasoning"),
        ("I'm sorry, I can't help with that.", "neither JSON nor a list nor lines"),
        ("抱歉，我不能提供。", "neither JSON nor a list nor lines"),
        ("Here are the facts:", "neither JSON nor a list nor lines"),
        ("[[[[", "neither JSON nor a list nor lines"),
        ('["Jon said "hi" to', "neither JSON nor a list nor lines"),
        ("- \n- \n1.\n", "neither JSON nor a list nor lines"),
        ("----\n****", "neither JSON nor a list nor lines"),
    ],
)
def test_what_cannot_be_understood_has_a_reason(output: str, reason: str) -> None:
    parsed = parse(output)
    assert parsed.outcome is Outcome.UNPARSEABLE
    assert parsed.reason is not None
    assert reason in parsed.reason
    assert parsed.memories == ()


def test_duplicates_and_empty_items_are_left_out() -> None:
    output = '- Jon likes tea.\n-\n- "Jon likes tea"\n- JON LIKES TEA\n- Gina has a cat.'
    assert memories(output) == ("Jon likes tea.", "Gina has a cat.")
    assert memories('["Jon likes tea", "", "  ", "Jon likes tea"]') == ("Jon likes tea",)


def test_a_list_whose_items_quote_brackets_is_read_as_a_list() -> None:
    output = '- Jon wrote ["a poem"] for her birthday\n- Gina collects stamps {"rare"}'
    assert memories(output) == ('Jon wrote ["a poem"] for her birthday', 'Gina collects stamps {"rare"}')


def test_only_an_indented_line_continues_the_item_above() -> None:
    output = "- Jon likes tea\n  with milk.\nThat is all I know.\n  Really.\n- Gina ran."
    assert memories(output) == ("Jon likes tea with milk.", "Gina ran.")


def test_numbers_within_a_sentence_do_not_split_it() -> None:
    assert memories("1. Jon ran 10. Gina won 3. prize") == ("Jon ran 10. Gina won 3. prize",)


def test_escapes_are_read_and_a_lone_surrogate_is_no_text() -> None:
    assert memories(r'["She said \"hi\" and \u6c34", "Jon\'s \/ tea", "broken \ud800 one"]') == (
        'She said "hi" and 水',
        "Jon's / tea",
    )


def test_every_part_outside_of_reasoning_is_read_and_none_inside() -> None:
    output = "- Jon likes tea.\n<think>- Not this.</think>\n- Gina ran.\n<THINKING>\n- Nor this."
    assert memories(output) == ("Jon likes tea.", "Gina ran.")


PROMPT = PromptContent(
    Instructions(
        "Write one fact per line.\nMia: My cat Felix is ill.\n- Mia has a cat called Felix.", ["Felix", "Mia"]
    ),
    "(4 May)\nGina: I opened a store in Lyon, and it is lovely.\nJon: Great!",
    ("Gina", "Jon"),
)


@pytest.mark.parametrize(
    "echo",
    [
        "Write one fact per line.",
        "Mia has a cat called Felix",
        "Gina has a cat, Felix.",
        "Gina: I opened a store in Lyon, and it is lovely.",
        '"I opened a store in Lyon, and it is lovely"',
        "Jon: Great!",
        "Gina",
    ],
)
def test_an_echo_of_the_prompt_is_no_memory(echo: str) -> None:
    assert parse(f"- {echo}", prompt=PROMPT).outcome is Outcome.UNPARSEABLE
    assert memories(f"- {echo}\n- Gina runs a store in Lyon.", prompt=PROMPT) == ("Gina runs a store in Lyon.",)


def test_an_examples_word_in_the_conversation_is_no_echo() -> None:
    prompt = PromptContent(PROMPT.instructions, "Gina: Felix came by.", ("Gina",))
    assert memories("- Felix visited Gina.", prompt=prompt) == ("Felix visited Gina.",)


def test_a_model_that_continues_the_chat_remembers_nothing() -> None:
    parsed = parse("Gina: How are you?\nJon: Fine, thanks, and you?", prompt=PROMPT)
    assert parsed.outcome is Outcome.UNPARSEABLE


@pytest.mark.parametrize("line", ["Jon: Thanks, see you soon!", "Gina: I'm glad about it.", "Jon：你喜欢里昂吗"])
def test_a_list_of_what_speakers_say_next_holds_no_memories(line: str) -> None:
    assert parse(f"- {line}", prompt=PROMPT).outcome is Outcome.UNPARSEABLE
    assert memories(f'["{line}", "Gina runs a store."]', prompt=PROMPT) == ("Gina runs a store.",)


def test_a_fact_behind_a_name_is_a_memory() -> None:
    assert memories("- Jon: owns a dance studio in Lyon.", prompt=PROMPT) == ("Jon: owns a dance studio in Lyon.",)


def test_a_sentence_of_a_document_can_be_a_memory_as_it_stands() -> None:
    sentence = "The bridge was opened in 1904 and is 212 metres long."
    assert memories(f"- {sentence}", prompt=PromptContent(Instructions(), sentence)) == (sentence,)


# --- whatever comes ----------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(
            "[",
            "]",
            "{",
            "}",
            '"',
            "\\",
            ",",
            ":",
            "'",
            "\n",
            " ",
            "- ",
            "1. ",
            "2. ",
            "(3) ",
            "一、",
            "①",
            "*",
            "**",
            "```json",
        ),
        *(
            "<think>",
            "</think>",
            "<memories>",
            "</memories>",
            "<memory>",
            "</memory>",
            "NONE",
            "无",
            "text",
            "facts",
            "\t",
        ),
        *(
            "Jon likes tea",
            "她喜欢茶",
            "Sure, ",
            "Here are",
            ".",
            "。",
            "\\ud800",
            "\\u6c34",
            "\u2028",
            "\x00",
            "😺",
            "null",
        ),
    ]
)
OUTPUTS = st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join))


def squeezed(text: str) -> str:
    return "".join(text.split())


def spelled_out(output: str) -> str:
    """Returns an output with every escape of JSON's read, so that what it quotes stands there as text."""
    out, at = [], 0
    while at < len(output):
        length = 6 if output[at : at + 2] == "\\u" else 2
        try:
            out.append(json.loads(f'"{output[at : at + length]}"') if output[at] == "\\" else output[at])
        except ValueError:
            out.append(output[at : at + length])
        at += length if output[at] == "\\" else 1
    return "".join(out)


@given(output=OUTPUTS, is_cut=st.booleans(), with_prompt=st.booleans())
@example(output='["\\ud83d\\ude3a is a cat"]', is_cut=False, with_prompt=False)
def test_no_output_raises_or_gives_a_text_that_was_not_in_it(output: str, is_cut: bool, with_prompt: bool) -> None:
    parsed = parse(output, is_cut=is_cut, prompt=PROMPT if with_prompt else None)
    assert (parsed.outcome is Outcome.MEMORIES) == bool(parsed.memories)
    assert (parsed.outcome is Outcome.UNPARSEABLE) == (parsed.reason is not None)
    there = (
        squeezed(output)
        + "\n"
        + squeezed(spelled_out(output)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )
    for memory in parsed.memories:
        assert memory == " ".join(memory.split())
        assert squeezed(memory) in there
        memory.encode()


HOSTILE = [
    "[",
    "{",
    '["',
    '{"a":',
    '["a" x ',
    '\\"',
    '"\\',
    "<think>",
    "<think></think>",
    "- ",
    "1. ",
    "```",
    "\n",
    " ",
    ",",
]
HOSTILE += [
    '"',
    "[[],",
    "-",
    "**",
    "<memory>",
    "</memory><memory>",
    "a. 1. ",
    "没有的",
    "no ",
    "\t ",
    "- a\n  b\n",
    "[ ",
]


@pytest.mark.slow
@pytest.mark.timeout(60 * SLOWNESS)
@pytest.mark.parametrize("piece", HOSTILE)
def test_time_grows_no_faster_than_the_output(piece: str) -> None:
    """At 100,000 characters one quadratic step would take minutes, where a linear one takes a tenth of a second."""
    output = (piece * 100_000)[:100_000]
    for end in ("", "x", '"]'):
        parse(output + end, is_cut=True, prompt=PROMPT)
