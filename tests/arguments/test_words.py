import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.arguments.words import Words, looks_like_flag

SHAPES = {
    "lora_rank": "value",
    "do_train": "switch",
    "use_cache_dir": "switch",
    "no_cuda": "switch",
    "targets": "list",
    "tf32": "value",
}


def read(*words):
    return Words("command line", SHAPES, dict).read(words)


def values(*words):
    said = read(*words)
    assert said.problems == []
    assert said.rest == []
    return [(each.name, each.value) for each in said.given]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_all_spellings_of_a_value_say_the_same(value):
    assert (
        values(f"--lora_rank={value}")
        == values(f"--lora-rank={value}")
        == values(f"lora_rank={value}")
        == [("lora_rank", value)]
    )


def test_a_value_may_follow_its_flag():
    assert values("--lora_rank", "8", "--lora-rank", "-1") == [
        ("lora_rank", "8"),
        ("lora_rank", "-1"),
    ]


@pytest.mark.parametrize("word", ["-1", "-1.5", "-1e-5", "-.5", "- text", "-", "text", ""])
def test_numbers_and_texts_are_no_flags(word):
    assert not looks_like_flag(word)


@pytest.mark.parametrize("word", ["-x", "--name", "--name=1", "--name=a b", "-1a"])
def test_words_with_a_dash_are_flags(word):
    assert looks_like_flag(word)


def test_a_switch_stands_alone_or_takes_a_word():
    assert values("--do_train", "--do-train", "false", "--do_train=no") == [
        ("do_train", "true"),
        ("do_train", "false"),
        ("do_train", "no"),
    ]


def test_a_switch_is_turned_off_by_no():
    assert values("--no_do_train", "--no-use-cache-dir") == [
        ("do_train", "false"),
        ("use_cache_dir", "false"),
    ]


def test_a_name_that_begins_with_no_is_itself():
    assert values("--no_cuda") == [("no_cuda", "true")]


def test_no_takes_no_value():
    assert "takes no value" in read("--no_do_train=true").problems[0]


def test_a_switch_leaves_configs_and_overrides_alone():
    said = read("--do_train", "run.yaml", "--do_train", "lora_rank=3")

    assert said.configs == ["run.yaml"]
    assert [each.value for each in said.given] == ["true", "true", "3"]


def test_a_list_takes_words_up_to_the_next_flag():
    assert values("--targets", "q", "v", "--do_train", "--targets=a,b", "--targets", "k") == [
        ("targets", ["q", "v"]),
        ("do_train", "true"),
        ("targets", "a,b"),
        ("targets", "k"),
    ]


@pytest.mark.parametrize("words", [["--lora_rank"], ["--lora_rank", "--do_train"]])
def test_a_missing_value_is_a_problem(words):
    assert read(*words).problems == ["command line: --lora_rank expects a value after it."]


def test_shortened_flags_are_refused_with_the_full_name():
    said = read("--lora_r", "8", "--do_train")

    assert said.problems == [
        "command line: --lora_r is shortened; flags are written in full: --lora_rank."
    ]
    assert [each.name for each in said.given] == ["do_train"]


def test_what_is_unknown_is_left_over_in_order():
    said = read("--foo", "1", "stray", "--bar=2", "-x", "--do_train", "--", "--lora_rank")

    assert said.rest == ["--foo", "1", "stray", "--bar=2", "-x", "--lora_rank"]
    assert said.unknown == ["--foo", "--bar=2", "-x"]
    assert said.stray == ["stray", "--lora_rank"]


def test_further_names_are_asked_for_only_when_needed():
    asked = []

    def further():
        asked.append(1)
        return {"late": "value"}

    known = Words("x", SHAPES, further).read(["--do_train", "--no_do_train"])
    late = Words("x", SHAPES, further).read(["--late", "1"])

    assert len(known.given) == 2
    assert [each.name for each in late.given] == ["late"]
    assert asked == [1]


@given(st.lists(st.sampled_from(["--do_train", "--lora_rank", "8", "x", "a.yaml", "--z", "b=1"])))
def test_no_word_is_lost(words):
    said = read(*words)

    counted = len(said.configs) + len(said.rest) + len(said.problems)
    counted += sum(2 if each.name == "lora_rank" else 1 for each in said.given)
    counted += sum(1 for each in said.given if each.name == "do_train" and each.value != "true")
    assert counted == len(words)
