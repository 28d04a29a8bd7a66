"""A family's wording around a passage: cuts and windows where tokens cross the border between the two."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

import tiny
from tamis.errors import InputTooLong, InvalidInput
from tamis.prompts import BoundPrompt, Prompt
from tamis.tokenizing import TextTokenizer

AFTER = "ive"  # " arch" before it becomes one token with it
LENGTH = 60


def asked(policy="truncate", after=AFTER, query="zip?"):
    prompt = Prompt(("Query: {query}\n", f"{{passage}}{after}", "\nRelevant?"))
    return BoundPrompt(prompt, TextTokenizer(tiny.byte_level()), max_length=LENGTH, policy=policy).ask(query)


def decoded(ids):
    return decoders.ByteLevel().decode(tiny.byte_level().convert_ids_to_tokens([int(one) for one in ids]))


def test_the_border_is_one_that_tokens_cross():
    tokenizer = TextTokenizer(tiny.byte_level())
    whole, passage, after = (ids.tolist() for ids in tokenizer.encode(["an archive", "an arch", "ive"]))
    assert whole != passage + after


@given(st.lists(st.sampled_from([" arch", " a", "zip ", "é", "x", "."]), min_size=20, max_size=200).map("".join))
@settings(deadline=None)
def test_a_cut_passage_keeps_its_beginning_and_the_wording_behind_it(text):
    made = asked().sequences([text + " arch"])
    (tokens,) = made.tokens
    assert len(tokens) <= LENGTH
    head, _, tail = decoded(tokens.ids).partition("\n")
    assert head == "Query: zip?"
    assert tail.endswith(AFTER + "\nRelevant?")
    kept = tail.removesuffix(AFTER + "\nRelevant?").rstrip("\N{REPLACEMENT CHARACTER}")
    assert (text + " arch").startswith(kept)
    assert bool(made.cut[0]) == (kept != text + " arch")


@given(st.lists(st.sampled_from([" arch", " a", "zip ", "x", "."]), min_size=60, max_size=200).map("".join))
@settings(deadline=None)
def test_windows_hold_all_of_a_passage(text):
    made = asked("max_window").sequences([text])
    assert all(len(tokens) <= LENGTH for tokens in made.tokens)
    covered = np.zeros(len(text), np.bool_)
    for tokens, span in zip(made.tokens, made.spans, strict=True):
        start, stop = span or (0, len(text))
        covered[start:stop] = True
        assert text[start:stop] + AFTER + "\nRelevant?" in decoded(tokens.ids)
    assert covered.all()
    assert not made.cut.any()


def test_a_wording_has_one_passage_and_a_query():
    for pieces in (("{query}",), ("{passage}",), ("{query}", "{passage}", "{passage}")):
        with pytest.raises(InvalidInput, match=r"has \{passage\} once"):
            Prompt(pieces)


def test_no_room_for_the_wording_or_for_a_passage():
    tokenizer = TextTokenizer(tiny.byte_level())
    with pytest.raises(InvalidInput, match=r"takes \d+ tokens by itself"):
        BoundPrompt(Prompt(("{query}", "{passage}", "x" * 100)), tokenizer, max_length=40)
    # What stands between query and passage is repeated for each place of the query: the frame does not count that.
    prompt = Prompt(("{query}{query}", "{query}{passage}"))
    with pytest.raises(InputTooLong, match="no room for a passage"):
        BoundPrompt(prompt, tokenizer, max_length=20).ask("zip archives and others " * 10)
