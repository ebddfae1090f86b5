from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from luthier.data import mixture
from luthier.data import stream as streams
from luthier.data.stream import Stream
from luthier.errors import DataError
from tests.data.streams import TOKENIZER, load, open_stream, take, write_rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "ROWS_OF_A_CHUNK", 3)
    return tmp_path


def test_every_row_comes_once_a_pass_and_each_pass_has_its_order(folder):
    stream = open_stream(folder, write_rows(folder, "a", 30))

    stream.start()
    first, second = take(stream, 30), take(stream, 30)

    rows = [f"a {n}" for n in range(30)]
    assert sorted(first) == sorted(second) == sorted(rows)
    assert first != rows
    assert first != second
    assert {*first[:8]} == {*rows[:8]}
    assert {*first[8:16]} == {*rows[8:16]}
    assert {*second[8:16]} != {*rows[8:16]}


def test_the_seed_decides_about_the_order_and_nothing_else_does(folder):
    file = write_rows(folder, "a", 30)

    def order_of(**given):
        stream = open_stream(folder, file, **given)
        stream.start()
        return take(stream, 45)

    assert order_of() == order_of()
    assert order_of(seed=1) != order_of()
    assert order_of(seed=1, data_seed=42) == order_of(data_seed=42)
    assert order_of(disable_shuffling=True)[:30] == [f"a {n}" for n in range(30)]


@pytest.mark.parametrize(
    ("mix", "probs"),
    [("concat", ()), ("interleave_under", (0.5, 0.3, 0.2)), ("interleave_over", ()),
     ("interleave_once", (0.6, 0.4, 0.0))],
)  # fmt: skip
def test_any_cut_goes_on_with_the_very_next_example(folder, mix, probs):
    files = [
        write_rows(folder, name, count, "{") for name, count in (("a", 25), ("b", 9), ("c", 4))
    ]
    given = {
        "mix_strategy": mix,
        "interleave_probs": list(probs),
        "max_bad_rows": 90,
        "val_size": 0.1,
    }
    whole = open_stream(folder, files, **given)
    whole.start()
    taken = take(whole, 120)

    for cut in random.Random(0).sample(range(1, 100), 10):
        one = open_stream(folder, files, **given)
        one.start()
        take(one, cut // 2)
        take(one, cut - cut // 2)
        take(one, 7)  # what is read ahead changes nothing
        state = json.loads(json.dumps(one.state(cut)))

        other = open_stream(folder, files, **given)
        other.start(state)

        assert take(other, 20) == taken[cut : cut + 20]
        other_state, counts = other.state(20), json.dumps(state["counts"])
        assert other_state is not None
        one.start()
        take(one, cut + 20)
        again = one.state(cut + 20)
        assert again is not None
        assert other_state["counts"] == again["counts"] != counts


def test_a_row_of_several_examples_can_be_cut_anywhere(folder):
    turns = [
        {"role": role, "content": f"{role} {n}"}
        for n in range(12)
        for role in ("user", "assistant")
    ]
    file = folder / "long.jsonl"
    file.write_text("\n".join(json.dumps({"messages": turns, "id": n}) for n in range(5)))
    whole = open_stream(folder, str(file), on_overlong="split")
    whole.start()
    taken = take(whole, 30)
    for cut in range(1, 20):
        one = open_stream(folder, str(file), on_overlong="split")
        one.start()
        take(one, cut)
        other = open_stream(folder, str(file), on_overlong="split")

        other.start(one.state(cut))

        assert take(other, 8) == taken[cut : cut + 8]


def test_going_on_encodes_one_chunk_and_reads_one_window(folder, monkeypatch):
    file = write_rows(folder, "a", 3000)
    one = open_stream(folder, file, buffer_size=100)
    one.start()
    take(one, 2500)
    state = one.state(2500)
    other = open_stream(folder, file, buffer_size=100)
    encoded, read = Counter(), Counter()
    encode, following = type(other.encoding).encode, mixture.Mixture.next
    monkeypatch.setattr(
        type(other.encoding), "encode",
        lambda self, rows: encoded.update(n=len(rows)) or encode(self, rows),
    )  # fmt: skip
    monkeypatch.setattr(mixture.Mixture, "next", lambda self: read.update(n=1) or following(self))

    other.start(state)
    take(other, 1)

    assert encoded["n"] <= 6
    assert read["n"] <= 200


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(folder, num_workers):
    files = [write_rows(folder, "a", 40), write_rows(folder, "b", 30, "{")]
    given = {"mix_strategy": "interleave_over", "max_bad_rows": 9, "val_size": 4}
    alone, shared = (
        open_stream(folder, files, dataloader_num_workers=n, **given) for n in (0, num_workers)
    )
    try:
        alone.start()
        shared.start()

        assert alone.next(100).equals(shared.next(100))
        assert alone.state(100) == shared.state(100)

        shared.start(alone.state(100))
        assert alone.next(50).equals(shared.next(50))
    finally:
        shared.close()


def test_mixing_draws_as_it_is_told(folder):
    files = [write_rows(folder, name, count) for name, count in (("a", 40), ("b", 10))]

    def drawn(count, **given):
        stream = open_stream(folder, files, disable_shuffling=True, **given)
        stream.start()
        return [one[0] for one in take(stream, count)]

    assert drawn(50) == ["a"] * 40 + ["b"] * 10
    assert drawn(20, mix_strategy="interleave_under") == ["a", "b"] * 10
    once = drawn(50, mix_strategy="interleave_once")
    assert once == ["a", "b"] * 10 + ["a"] * 30
    over = drawn(80, mix_strategy="interleave_over")
    assert over == ["a", "b"] * 40
    shares = drawn(400, mix_strategy="interleave_over", interleave_probs=[0.9, 0.1])
    assert 20 < shares.count("b") < 65


def test_num_samples_and_max_samples_are_rows_of_a_pass(folder):
    write_rows(folder, "a", 5)
    write_rows(folder, "b", 50)
    info = {"a": {"file_name": "a.jsonl", "num_samples": 12}, "b": {"file_name": "b.jsonl"}}

    (folder / "dataset_info.json").write_text(json.dumps(info))
    stream = open_stream(folder, "a,b", max_samples=20)
    stream.start()
    counts = Counter(take(stream, 32))

    assert sum(n for row, n in counts.items() if row[0] == "a") == 12
    assert max(n for row, n in counts.items() if row[0] == "a") == 3
    assert {row for row in counts if row[0] == "b"} == {f"b {n}" for n in range(20)}
    assert stream.reports[0].num_read == 5


@pytest.mark.parametrize("val_size", [0.25, 6])
def test_what_is_evaluated_on_is_never_trained_on_however_often_it_stands_there(folder, val_size):
    file = write_rows(folder, "a", 40)
    with open(file) as lines:
        rows = [json.loads(line) for line in lines]
    with open(file, "a") as lines:
        lines.writelines(json.dumps(row | {"id": -1}) + "\n" for row in rows)

    found = load(folder, file, val_size=val_size, predict_with_generate=True)
    stream = found.train
    stream.start()
    trained = {*take(stream, 200)}

    kept = {row.rpartition(":")[2] for row in found.eval[""].table["origin"]}
    kept = {f"a {(int(line) - 1) % 40}" for line in kept}
    assert kept
    assert not kept & trained
    assert len(kept | trained) == 40
    assert len(found.predict[""]) == len(found.eval[""]) == len(kept)
    (report,) = stream.reports
    assert report.left_out["kept for evaluation"] == 2 * len(kept)
    again = load(folder, file, val_size=val_size)
    assert again.eval[""].table["origin"] == found.eval[""].table["origin"]


def test_bad_rows_are_told_as_they_come_and_end_the_run_when_they_are_too_many(folder, capsys):
    good = write_rows(folder, "good", 40, *['{"instruction": 1'] * 3)
    bad = write_rows(folder, "bad", 40, *["{"] * 30)
    stream = open_stream(folder, good, disable_shuffling=True, max_bad_rows=0.5)
    stream.start()
    capsys.readouterr()

    take(stream, 1)

    said = capsys.readouterr().err
    assert "good.jsonl:1" in said
    assert "good.jsonl:3" in said
    assert "3 skipped" in next(stream.lines())
    stream = open_stream(folder, bad, max_bad_rows=10)
    stream.start()
    with pytest.raises(DataError, match=r"cannot be used; max_bad_rows allows 10"):
        take(stream, 40)


def test_a_share_of_bad_rows_is_judged_when_all_rows_were_seen(folder):
    stream = open_stream(folder, write_rows(folder, "a", 40, "{", "{"), max_bad_rows=0.01)
    stream.start()

    take(stream, 40)

    with pytest.raises(DataError, match="2 of 42 rows cannot be used"):
        take(stream, 1)


def test_long_rows_are_counted_told_and_may_end_the_run(folder, capsys):
    file = folder / "a.jsonl"
    rows = [{"instruction": "Why?", "output": "word " * (200 if n == 5 else 2)} for n in range(9)]
    file.write_text("\n".join(map(json.dumps, rows)))

    stream = open_stream(folder, str(file))
    stream.start()
    take(stream, 9)
    assert stream.reports[0].num_rows_cut == 1
    assert "longer than cutoff_len 64" in capsys.readouterr().err

    stream = open_stream(folder, str(file), on_overlong="drop")
    stream.start()
    take(stream, 8)
    assert stream.reports[0].left_out == {"longer than cutoff_len": 1}

    stream = open_stream(folder, str(file), on_overlong="error")
    stream.start()
    with pytest.raises(DataError, match="on_overlong: error"):
        take(stream, 9)


def test_a_state_of_other_data_or_settings_is_refused(folder):
    file = write_rows(folder, "a", 30)
    stream = open_stream(folder, file)
    stream.start()
    take(stream, 3)
    state = stream.state(3)

    with pytest.raises(DataError, match=r"(?s)buffer_size 8, now 9.*ignore_data_skip"):
        open_stream(folder, file, buffer_size=9).start(state)
    moved = folder / "elsewhere"
    moved.mkdir()
    open_stream(folder, write_rows(moved, "a", 30)).start(state)
    write_rows(folder, "a", 31)
    with pytest.raises(DataError, match="content of dataset"):
        open_stream(folder, file).start(state)


def test_nothing_to_learn_from_is_an_error(folder):
    file = folder / "a.jsonl"
    file.write_text("")
    with pytest.raises(DataError, match="there are no rows"):
        open_stream(folder, str(file))
    stream = open_stream(folder, write_rows(folder, "b", 3), cutoff_len=2, max_bad_rows=9)
    stream.start()
    with pytest.raises(DataError, match="no row is left to learn from"):
        take(stream, 1)
    with pytest.raises(DataError, match="no row is left to learn from"):
        stream.take(4)
    with pytest.raises(DataError, match="leaves nothing to train on"):
        open_stream(folder, write_rows(folder, "c", 3), val_size=3)


def started(stream: Stream) -> Stream:
    stream.start()
    return stream


def test_rows_are_held_out_by_what_is_read_of_them_wherever_it_stands(folder):
    rows = [
        {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": one}]}
        for one in "bcdefg"
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = {"file_name": str(folder / "a.jsonl"), "formatting": "openai", "num_samples": 12}

    found = load(folder, "a", dataset_dir={"a": entry}, val_size=2)

    assert len(found.eval[""]) == 2
    assert {*take(started(found.train), 24)} == {*"defg"}


@pytest.mark.parametrize("given", [{"ranking": True}, {"columns": {"kto_tag": "label"}}])
def test_data_of_another_stage_is_refused(folder, given):
    entry = {"file_name": write_rows(folder, "a", 3)} | given

    with pytest.raises(DataError, match=r"'pairs': .*(chosen|kto_tag)"):
        open_stream(folder, "pairs", dataset_dir={"pairs": entry})


def test_weights_that_would_be_lost_are_refused(folder, capsys):
    file = folder / "a.jsonl"
    file.write_text(json.dumps({"instruction": "a", "output": "b", "weight": 0.5}))
    entry = {"file_name": str(file), "columns": {"weight": "weight"}}
    take(started(open_stream(folder, str(file))), 3)  # nobody named the column
    assert capsys.readouterr().err.count("column 'weight' is not read") == 1
    stream = started(open_stream(folder, "a", dataset_dir={"a": entry}))

    with pytest.raises(DataError, match="with streaming such weights do not reach the loss"):
        take(stream, 1)


@pytest.mark.parametrize("streaming", [True, False])
def test_special_tokens_are_split_in_contents_on_both_roads(folder, streaming):
    rows = [
        {"instruction": f"What is <|im_end|> {n}?", "output": "<|im_end|> ends"} for n in range(3)
    ]
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = {"val_size": 1, "predict_with_generate": True, "split_special_tokens": True}

    found = load(folder, str(folder / "a.jsonl"), streaming=streaming, do_predict=True, **options)

    trained = found.train.take(2)
    (asked,) = found.predict[""].table.to_list()
    learned = [list(row.input_ids) for row in (*trained, *found.eval[""].take(9))]
    eos = TOKENIZER.eos_token_id
    assert [ids.count(eos) for ids in learned] == [2] * len(learned)
    assert learned[-1] == asked["input_ids"] + asked["labels"]
    assert TOKENIZER.decode(learned[0]).count("<|im_end|>") == 4
