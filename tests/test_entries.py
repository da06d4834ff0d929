"""What entries of people's data say: who speaks, answers of every form, texts that no file can hold."""

import json

import pytest
from brought import all_questions, listed, prepared, rejects, write

from infotok.data.entries import texts
from infotok.data.text import TextCodec, train_text_tokenizer


def llava(*turns):
    return [{"from": who, "value": said} for who, said in turns]


def pairs_of(**entry):
    return [(pair["question"], pair["answer"]) for pair in texts(entry)[1]]


LLAVA = [
    ("system", "be brief"),
    ("human", "<image>\nwhat color?"),
    ("gpt", "red"),
    ("human", "what shape?"),
    ("gpt", "circle"),
]
WANTED = [("what color?", "red"), ("what shape?", "circle")]


@pytest.mark.parametrize(
    "entry",
    [
        {"conversations": llava(*LLAVA)},
        {"messages": [{"role": role, "content": said} for role, said in
                      [("system", "be brief"), ("user", "what color?"), ("assistant", "red"), ("user", "what shape?"),
                       ("assistant", "circle")]]},
        {"conversations": [{"role": "User", "content": [{"type": "image"}, {"type": "text", "text": "what color?"}]},
                           {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
                           {"from": "human", "value": "what shape?"}, {"from": "gpt", "value": "circle"}]},
        {"texts": [{"user": "what color?", "assistant": "red", "source": "x"},
                   {"user": "what shape?", "assistant": "circle", "source": "x"}]},
        {"questions": {"question": ["what color?", "what shape?"], "answer": ["red", "circle"]}},
        {"questions": [{"question": "what color?", "answer": "red"}], "messages": llava(*LLAVA[3:])},
    ],
    ids=["llava", "messages", "parts", "cauldron", "columns", "both"],
)  # fmt: skip
def test_questions_and_answers_are_paired_by_who_speaks(entry):
    captions, questions, wrong = texts({"caption": "a red circle"} | entry)
    assert captions == ["a red circle"]
    assert [(pair["question"].strip(), pair["answer"]) for pair in questions] == WANTED
    assert wrong == []


@pytest.mark.parametrize(
    ("turns", "kept", "wrong"),
    [
        ([("human", "a?"), ("human", "b?"), ("gpt", "c")], [("b?", "c")], ["has no answer: a?"]),
        ([("gpt", "hello"), ("human", "a?"), ("gpt", "b")], [("a?", "b")], ["answers no question: hello"]),
        ([("human", "a?"), ("gpt", "b"), ("gpt", "c")], [("a?", "b")], ["answers no question: c"]),
        ([("human", "a?"), ("gpt", "b"), ("human", "c?")], [("a?", "b")], ["has no answer: c?"]),
        ([("human", "a?"), ("narrator", "b"), ("gpt", "c")], [("a?", "c")],
         ["has an unknown speaker (known: human or user, gpt or assistant, system): narrator"]),
        ([("human", "a?"), ("system", "be brief"), ("gpt", "b")], [("a?", "b")], []),
        ([], [], []),
    ],
)  # fmt: skip
def test_a_turn_without_its_partner_is_told(turns, kept, wrong):
    _, questions, told = texts({"conversations": llava(*turns)})
    assert [(pair["question"], pair["answer"]) for pair in questions] == kept
    assert told == [("turn", reason) for reason in wrong]


def test_turns_become_questions_and_rejects_of_their_line(tmp_path):
    lines = listed(tmp_path / "in", 60, conversations=lambda i: llava(*LLAVA))
    lines[6]["conversations"] = llava(("human", "<image>\nwhat color?"), ("human", "what shape?"), ("gpt", "circle"))
    lines[7]["conversations"] = ["what color?", "red"]
    write(tmp_path / "in", lines)
    prepared(tmp_path / "in", tmp_path / "out", max_rejects=3)
    asked = all_questions(tmp_path / "out")
    assert [(pair["question"], pair["answer"]) for pair in asked[1]] == WANTED
    assert [(pair["question"], pair["answer"]) for pair in asked[7]] == WANTED[1:]
    assert asked[8] == []
    told = [(line["line"], line["what"], line["reason"]) for line in rejects(tmp_path / "out")]
    nobody = "has an unknown speaker (known: human or user, gpt or assistant, system): "
    assert told == [
        (7, "turn", "has no answer: what color?"), (8, "turn", nobody + "what color?"), (8, "turn", nobody + "red"),
    ]  # fmt: skip


ANSWERS = [  # as JSON, the answer that is learned, and all that are right where there are several
    ('"red"', "red", None),
    ("3", "3", None),
    ("2.0", "2", None),
    ("0.25", "0.25", None),
    ("true", "yes", None),
    ("false", "no", None),
    ('["sofa", "couch"]', "sofa", ["sofa", "couch"]),
    ('["one"]', "one", None),
    ("[1, true]", "1", ["1", "yes"]),
    ('["no", "yes", "yes"]', "yes", ["no", "yes", "yes"]),
    ('[{"answer": "cat"}, {"answer": "dog"}, {"answer": "dog"}]', "dog", ["cat", "dog", "dog"]),
    ('"cafe\\u0301"', "café", None),  # an e and its accent, written as two letters
]


@pytest.mark.parametrize("key", ["answer", "answers"])
def test_answers_of_every_form_become_texts(tmp_path, key):
    lines = listed(tmp_path / "in", 60)
    for line, (given, _, _) in zip(lines, ANSWERS, strict=False):
        line |= {"question": "what?", key: json.loads(given)}
    write(tmp_path / "in", lines)
    prepared(tmp_path / "in", tmp_path / "out")
    asked = all_questions(tmp_path / "out")
    for number, (given, answer, answers) in enumerate(ANSWERS, 1):
        wanted = {"question": "what?", "answer": answer, "family": "question"} | (
            {"answers": answers} if answers else {}
        )
        assert asked[number] == [wanted], given


def test_an_answer_beside_the_list_that_it_stands_in_is_not_counted_twice(tmp_path):
    lines = listed(tmp_path / "in", 60)
    lines[0] |= {"question": "what?", "answer": "net", "answers": ["net"] * 6 + ["goal"] * 4}
    lines[1] |= {"question": "what?", "answer": "mesh", "answers": ["net", "net"]}
    write(tmp_path / "in", lines)
    prepared(tmp_path / "in", tmp_path / "out")
    asked = all_questions(tmp_path / "out")
    assert (asked[1][0]["answer"], asked[1][0]["answers"]) == ("net", ["net"] * 6 + ["goal"] * 4)
    assert asked[2][0]["answers"] == ["mesh", "net", "net"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("null", "is missing"),
        ("[]", "is missing"),
        ('""', "is empty"),
        ("NaN", "is missing"),
        ('{"a": 1}', "is missing"),
        ('[["red"]]', "is no text but list"),
        ('"\\ud83d"', "holds half of a surrogate pair; write the whole character"),
    ],
)
def test_an_answer_that_is_none_is_rejected(tmp_path, given, reason):
    lines = listed(tmp_path / "in", 60)
    lines[4] |= {"question": "what?", "answer": json.loads(given)}
    write(tmp_path / "in", lines)
    prepared(tmp_path / "in", tmp_path / "out", max_rejects=1)
    assert [(line["line"], line["what"], line["reason"]) for line in rejects(tmp_path / "out")] == [
        (5, "answer", reason)
    ]


@pytest.mark.parametrize("key", ["caption", "question", "family", "image", "split"])
def test_half_of_a_surrogate_pair_is_one_reject(tmp_path, key):
    lines = listed(tmp_path / "in", 60, question=lambda i: "what?", answer=lambda i: "red", family=lambda i: "hue")
    lines[4][key] = "\ud83d"
    write(tmp_path / "in", lines)
    prepared(tmp_path / "in", tmp_path / "out", max_rejects=1)
    told = [(line["line"], line["what"]) for line in rejects(tmp_path / "out")]
    what = {"family": [], "image": ["image"], "split": ["line"]}.get(key, [key])
    assert told == [(5, one) for one in what]
    if key == "family":
        assert all_questions(tmp_path / "out")[5][0]["family"] == "question"


MARKS = ["<end>", "no <end>", "<pad>", "a <pad><end> b", "<end><end>", "x<end>y <pad>z"]


def test_texts_cannot_write_the_marks(tmp_path):
    """An answer `no <end>` is told from `no`, and comes back whole."""
    lines = listed(tmp_path / "in", 60, question=lambda i: "what?", answer=lambda i: MARKS[i % len(MARKS)])
    write(tmp_path / "in", lines)
    prepared(tmp_path / "in", tmp_path / "out")
    codec = TextCodec.from_file(tmp_path / "out" / "text.json")
    for text in MARKS:
        ids = codec.encode(text)
        assert not {codec.end, codec.pad} & set(ids)
        assert codec.decode([*ids, codec.end, *codec.encode("more")]) == text


def bpe():
    return train_text_tokenizer(["no <end> here", "what <pad>?"], 300), "<end>", "<pad>"


def word_pieces():
    """As BERT's: unknown letters are one token, so that of these texts only the marks are looked at."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[SEP]", "[UNK]", "no", "[", "]", "se", "##p", "pad"]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[SEP]"])
    return made, "[SEP]", "[PAD]"


def sentence_pieces():
    """As T5's: the marks are pieces of the vocabulary too, which its model finds in any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁no", *"<>/spadno"]
    made = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>"])
    return made, "</s>", "<pad>"


@pytest.mark.parametrize("make", [bpe, word_pieces, sentence_pieces])
def test_no_tokenizer_lets_a_text_write_the_marks(make):
    made, end, pad = make()
    codec = TextCodec(made, made.token_to_id(pad), made.token_to_id(end))
    for text in (end, f"no {end}", f"{pad} {end}", f"no{end}{end}no", pad * 2):
        assert not {codec.end, codec.pad} & set(codec.encode(text)), text
        if make is bpe:
            assert codec.decode([*codec.encode(text), codec.end]) == text
    again = TextCodec(made.from_str(made.to_str()), codec.pad, codec.end)  # as a trained model's file keeps it
    assert again.encode(f"no {end}") == codec.encode(f"no {end}")
