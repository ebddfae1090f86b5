import copy
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.check import RowProblem
from luthier.data.encode import OVERLONG, Encoder, EncodingOptions, LeftOut, Outcome
from luthier.data.truncate import share_room
from luthier.errors import DataError
from luthier.example import Example
from luthier.records import IGNORE_INDEX, Conversation, Message, Origin, Token
from luthier.templates.chat_template import ChatTemplate
from luthier.templates.template import CONTENT, TEMPLATES, Template
from tests import tiny

CHATML = TEMPLATES.get("chatml")
EFFICIENT = Template("efficient", user=("Q:" + CONTENT + "A:",), efficient_eos=True)


def chat(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    messages = (Message(roles[at % 2], text) for at, text in enumerate(texts))
    return Conversation(tuple(messages), origin=Origin("rows.json", 3))


def firsts(outcomes: list[Outcome]) -> list[Example | RowProblem | LeftOut]:
    """The first example of each row, as lists."""
    return [
        dataclasses.replace(one[0], input_ids=[*one[0].input_ids], labels=[*one[0].labels])
        if isinstance(one, list)
        else one
        for one in outcomes
    ]


def encode(tokenizer, conversation, template=CHATML, **options) -> Example:
    encoder = Encoder(tokenizer, template, EncodingOptions(**({"cutoff_len": 512} | options)))
    (found,) = firsts(encoder.learn([conversation]))
    assert isinstance(found, Example)
    return found


def learned(tokenizer, example: Example) -> str:
    return tokenizer.decode([token for token in example.labels if token != IGNORE_INDEX])


@settings(max_examples=300)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 400))
def test_room_is_filled_and_never_overdrawn(source, target, room):
    kept_source, kept_target = share_room(source, target, room)

    assert 0 <= kept_source <= source
    assert 0 <= kept_target <= target
    assert kept_source + kept_target <= room
    if source + target <= room:
        assert (kept_source, kept_target) == (source, target)
    else:
        assert kept_source + kept_target == room


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [
        ((3000, 2000, 1000), (600, 400)),
        ((2000, 3000, 1000), (400, 600)),
        ((1000, 100, 1000), (900, 100)),
        ((100, 1000, 1000), (100, 900)),
    ],
)
def test_both_are_cut_in_proportion_but_short_ones_are_kept(lengths, kept):
    assert share_room(*lengths) == kept


def test_answers_are_learned_with_their_end(tiny_tokenizer):
    example = encode(tiny_tokenizer, chat("one", "two", "three", "four"))

    assert learned(tiny_tokenizer, example) == "two<|im_end|>\nfour<|im_end|>\n"
    assert len(example.labels) == len(example.input_ids)
    assert example.num_cut == 0


def test_history_is_masked_and_the_last_turn_has_room_first(tiny_tokenizer):
    conversation = chat("one " * 30, "two", "three", "four")

    whole = encode(tiny_tokenizer, conversation, mask_history=True)
    cut = encode(tiny_tokenizer, conversation, mask_history=True, cutoff_len=40)

    assert learned(tiny_tokenizer, whole) == learned(tiny_tokenizer, cut) == "four<|im_end|>\n"
    assert cut.input_ids == encode(tiny_tokenizer, chat("three", "four")).input_ids
    assert cut.num_cut == len(whole.input_ids) - len(cut.input_ids)


def test_prompts_are_learned_when_asked(tiny_tokenizer):
    example = encode(tiny_tokenizer, chat("one", "two"), train_on_prompt=True)

    assert example.labels == example.input_ids


def test_an_efficient_eos_ends_every_answer_once(tiny_tokenizer):
    eos = tiny_tokenizer.eos_token_id

    example = encode(tiny_tokenizer, chat("one", "two", "three", "four"), EFFICIENT)
    masked = encode(
        tiny_tokenizer, chat("one", "two", "three", "four"), EFFICIENT, mask_history=True
    )

    assert example.labels.count(eos) == 2
    assert example.input_ids[-1] == eos
    assert learned(tiny_tokenizer, masked) == "four<|im_end|>"


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.text("ab é\n", max_size=40), min_size=1, max_size=6),
    cutoff_len=st.integers(1, 80),
    mask_history=st.booleans(),
    is_efficient=st.booleans(),
)
def test_no_example_is_longer_than_its_room(
    tiny_tokenizer, texts, cutoff_len, mask_history, is_efficient
):
    conversation = chat(*texts, *texts)
    template = EFFICIENT if is_efficient else CHATML
    options = EncodingOptions(cutoff_len, mask_history)

    (found,) = firsts(Encoder(tiny_tokenizer, template, options).learn([conversation]))

    if isinstance(found, LeftOut):
        assert found.reason == OVERLONG
        return
    assert len(found.input_ids) == len(found.labels) <= cutoff_len
    assert found.num_units > 0
    pairs = zip(found.input_ids, found.labels, strict=True)
    eos = tiny_tokenizer.eos_token_id
    assert all(label in (IGNORE_INDEX, token) or label == eos for token, label in pairs)


def test_gpt_oss_learns_the_end_of_each_answer_where_the_history_writes_another():
    tokenizer = tiny.make_tokenizer()
    words = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>"]
    tokenizer.add_special_tokens({"eos_token": "<|return|>", "extra_special_tokens": words})
    conversation = Conversation(
        (
            Message("user", "What is 2 + 2?"),
            Message("assistant", "Four."),
            Message("user", "And 3 + 3?"),
            Message("assistant", "Six."),
        )
    )
    end, eos = tokenizer.convert_tokens_to_ids(["<|end|>", "<|return|>"])

    encoded = encode(tokenizer, conversation, TEMPLATES.get("gpt_oss"))

    ended = [ids for ids in zip(encoded.input_ids, encoded.labels, strict=True) if ids[1] == eos]
    assert ended == [(end, eos), (eos, eos)]
    assert "Four.<|end|><|start|>user<|message|>And" in tokenizer.decode(encoded.input_ids)


def test_a_row_without_room_for_its_answer_is_too_long(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, CHATML, EncodingOptions(2))

    (found,) = encoder.learn([chat("one " * 50, "two")])

    assert isinstance(found, LeftOut)
    assert found.reason == OVERLONG


def test_tools_that_cannot_be_rendered_are_a_problem_of_the_row(tiny_tokenizer):
    broken = Conversation((Message("user", "a"), Message("function", "not json")), tools="[]")
    encoder = Encoder(tiny_tokenizer, TEMPLATES.get("qwen"), EncodingOptions(99))

    first, second = firsts(encoder.learn([broken, chat("one", "two")]))

    assert isinstance(first, RowProblem)
    assert isinstance(second, Example)


def test_a_token_the_tokenizer_lacks_is_an_error(tiny_tokenizer):
    template = Template("odd", prefix=(Token("[gMASK]"),))

    with pytest.raises(DataError, match="gMASK"):
        encode(tiny_tokenizer, chat("one", "two"), template)


def test_a_batch_equals_rows_and_pieces_one_by_one(tiny_tokenizer):
    conversations = [chat(f"question {n % 3}", f"answer {n} é") for n in range(20)]
    encoder = Encoder(tiny_tokenizer, CHATML, EncodingOptions(64))

    together = firsts(encoder.learn(conversations))

    for conversation, found in zip(conversations, together, strict=True):
        expected: list[int] = []
        for turn in CHATML.turns(conversation):
            for piece in (*turn.prompt, *turn.answer):
                if isinstance(piece.content, str):
                    expected += tiny_tokenizer.encode(piece.content, add_special_tokens=False)
                else:
                    expected.append(tiny_tokenizer.eos_token_id)
        assert found.input_ids == expected


def outcomes(tokenizer, template, conversation: Conversation, **options) -> list[list[int]]:
    """The ids of a row as it is learned, and as it is asked, the answer behind the prompt."""
    encoder = Encoder(tokenizer, template, EncodingOptions(**({"cutoff_len": 512} | options)))
    ((learned,),), ((asked,),) = encoder.learn([conversation]), encoder.ask([conversation])
    return [learned.input_ids.tolist(), (asked.input_ids + asked.labels).tolist()]


@pytest.mark.parametrize("name", ["chatml", "qwen", "own"])
def test_special_tokens_are_split_in_contents_alone(tiny_tokenizer, name):
    template = ChatTemplate(tiny_tokenizer) if name == "own" else TEMPLATES.get(name)
    texts = ["What does the marker <|im_end|> mean?", "The marker <|im_end|> ends a turn."]
    tools = r'[{"name": "end", "description": "<|im_end|> and \u003c|im_end|\u003E"}]'
    plain = dataclasses.replace(chat(*texts), system="never <|im_end|> or <|im_start|>system")
    rows = [plain] + ([dataclasses.replace(plain, tools=tools)] if name == "qwen" else [])
    call = '{"name": "end", "arguments": {"at": "<|im_end|>"}}'
    calling = Message("function", call, said="an <|im_end|> then")
    rows += [Conversation((plain.messages[0], calling))] if name == "qwen" else []
    eos = tiny_tokenizer.eos_token_id

    for row in rows:
        found = outcomes(tiny_tokenizer, template, row, split_special_tokens=True)
        kept = outcomes(tiny_tokenizer, template, row)

        assert [ids.count(eos) for ids in found] == [3, 3]
        assert min(ids.count(eos) for ids in kept) > 4
        assert list(map(tiny_tokenizer.decode, found)) == list(map(tiny_tokenizer.decode, kept))
        assert not any("\ue0f1" in tiny_tokenizer.decode(ids) for ids in found)


def test_words_of_a_thought_are_the_templates_own_where_special_tokens_are_split(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    thought, own = "<think>\nhm\n</think>\n\n", tokenizer.convert_tokens_to_ids("<think>")

    for template in (TEMPLATES.get("qwen3"), ChatTemplate(tokenizer)):
        row = chat("Write <think>", f"{thought}Done.")
        found = outcomes(tokenizer, template, row, split_special_tokens=True)

        assert [ids.count(own) for ids in found] == [1, 1]


@pytest.mark.parametrize("prepend", ["first", "always", "normal"])
@pytest.mark.parametrize("splits", [False, True])
def test_the_ids_of_a_chat_template_are_those_that_it_gives(prepend, splits):
    tokenizer = tiny.make_sentencepiece(prepend)
    row = chat("Tell me how glue is made.", "The neck", "a\n\nsecond  one ", " The belly\n")
    messages = [{"role": one.role, "content": one.content} for one in row.messages]

    found = outcomes(tokenizer, ChatTemplate(tokenizer), row, split_special_tokens=splits)

    given = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    assert found == [given, given]
    assert tokenizer.convert_ids_to_tokens(given).count("▁The") == 1


def test_a_prompt_to_answer_holds_no_answer(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, CHATML, EncodingOptions(512))

    ((found,),) = encoder.ask([chat("one", "two", "three", "four")])

    assert tiny_tokenizer.decode(found.input_ids).endswith(
        "three<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tiny_tokenizer.decode(found.labels) == "four<|im_end|>\n"


def test_a_chat_template_that_drops_tools_is_told_apart_from_a_wrong_row(tiny_tokenizer):
    tools = '[{"name": "saw", "description": "Saws.", "parameters": {}}]'
    row = dataclasses.replace(chat("Hi", "Hello"), tools=tools)
    encoder = Encoder(tiny_tokenizer, ChatTemplate(tiny_tokenizer), EncodingOptions(cutoff_len=512))

    (problem,) = encoder.learn([row])

    assert isinstance(problem, RowProblem)
    assert "leaves out the tools.\n  Name a template instead" in str(problem)
    assert "Mend" not in str(problem)
    assert ".." not in str(problem).replace("...", "")
