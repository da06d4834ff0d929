"""What one entry of somebody's data says of its image: captions, and questions with their answers, as they stand.

caption, captions          a text; several
question, answer           one question; answer: a text, a number, true or false, or a list, of which each is right
answers                    in place of `answer`, or beside it: a list
questions                  [{"question", "answer", "family"}, ...]; family is optional, for scores apart
conversations, messages    turns of a person and of an assistant, [{"from", "value"}, ...] or [{"role", "content"}, ...]
texts                      [{"user", "assistant"}, ...], as the_cauldron's
"""

from __future__ import annotations

from typing import Any

PEOPLE, ASSISTANTS, SYSTEM = {"human", "user"}, {"gpt", "assistant", "model", "bot"}, {"system"}
TURNS = ("conversations", "messages", "texts")
KEYS = ("caption", "captions", "question", "answer", "answers", "questions", *TURNS)
SHOWN = 60  # characters of a text that a reason shows


def texts(entry: dict[str, Any]) -> tuple[list[Any], list[dict[str, Any]], list[tuple[str, str]]]:
    """Captions, questions, and what is wrong with turns, as (what, reason). Nothing is checked but who speaks."""
    captions = [*_several(entry.get("captions")), *([entry["caption"]] if "caption" in entry else [])]
    questions = [pair if isinstance(pair, dict) else {} for pair in _several(entry.get("questions"))]
    if any(key in entry for key in ("question", "answer", "answers")):
        questions.append({key: entry[key] for key in ("question", "answer", "answers", "family") if key in entry})
    wrong: list[tuple[str, str]] = []
    for key in TURNS:
        questions += _dialogue(_several(entry.get(key)), wrong)
    return captions, questions, wrong


def _several(value: Any) -> list[Any]:
    """A list of what may be a list, one value, nothing, or columns of a table as `datasets` gives them."""
    if value is None:
        return []
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        rows = zip(*value.values(), strict=False)
        return [dict(zip(value, row, strict=True)) for row in rows]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _dialogue(turns: list[Any], wrong: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Questions of the person with the assistant's answers to them."""
    pairs, waiting = [], None
    for who, words in (part for turn in turns for part in _parts(turn)):
        if who in PEOPLE:
            if waiting is not None:
                wrong.append(("turn", f"has no answer: {_shown(waiting)}"))
            waiting = words
        elif who in ASSISTANTS:
            if waiting is None:
                wrong.append(("turn", f"answers no question: {_shown(words)}"))
            else:
                pairs.append({"question": waiting, "answer": words})
            waiting = None
        elif who not in SYSTEM:
            wrong.append(
                ("turn", f"has an unknown speaker (known: human or user, gpt or assistant, system): {_shown(who)}")
            )
    if waiting is not None:
        wrong.append(("turn", f"has no answer: {_shown(waiting)}"))
    return pairs


def _parts(turn: Any) -> list[tuple[Any, Any]]:
    """(who, what) of a turn; of one of the_cauldron's, which holds both sides, two."""
    if not isinstance(turn, dict):
        return [(turn, None)]
    if "user" in turn or "assistant" in turn:
        return [(who, _text(turn[who])) for who in ("user", "assistant") if turn.get(who) is not None]
    who = turn.get("from", turn.get("role"))
    who = who.strip().lower() if isinstance(who, str) else who
    words = turn.get("value", turn.get("content"))
    return [(who if isinstance(who, str) else repr(who), _text(words))]


def _text(words: Any) -> Any:
    """The words of a turn, without the mark of the image; its content may be a list of typed parts."""
    if isinstance(words, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in words]
        words = "\n".join(part for part in parts if isinstance(part, str))
    return words.replace("<image>", "") if isinstance(words, str) else words


def _shown(text: Any) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
