"""Answers in generated text: what the published parsers get wrong, and what is no answer."""

import string

import pytest

from headedit.evaluation.answers.extraction import extract_option

LETTERS = string.ascii_uppercase[:10]
TEXTS = [f"option {letter}" for letter in LETTERS[:2]] + ["a grey cat"] + [f"option {letter}" for letter in LETTERS[3:]]
WORDS = [f"answer{i}" for i in range(1, 6)]


@pytest.mark.parametrize(
    "text",
    [
        *("Answer: C", "answer: c", "The answer is C", "The answer is (C).", "[The answer is (C)]", "**C**", "C", "c"),
        *(
            "(C)",
            "(c) a grey cat",
            "C. a grey cat",
            "The correct answer is **C**.",
            "$\\boxed{C}$",
            "\\boxed{\\text{C}}",
        ),
        *("a grey cat", "A grey cat.", "I think C", "the correct option is C because A is wrong", "\n\n C\nD"),
        *("The answer is not A but C", "I don't know, but the answer is C", "The best choice would be option (C)"),
    ],
)
def test_the_letter_that_a_response_means_is_extracted(text):
    assert extract_option(text, LETTERS, TEXTS) == "C"


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), ("I", "I"), ("(I)", "I"), ("The answer is A because", "A"), ("The answer is I", "I")],
)
def test_letters_that_are_also_words_are_not_mistaken_for_answers(text, letter):
    assert extract_option(text, LETTERS, TEXTS) == letter


@pytest.mark.parametrize(
    "text",
    [
        *(
            "I cannot answer this question.",
            "I'm sorry, I can't help.",
            "As an AI language model, B",
            "None of the above",
        ),
        *("A good question.", "The answer is a cat", "Answer", "", "\n"),
        *("A or B", "A, B and C", "A. or B.", "The answer is A or B", "The answer is B, no, the answer is C"),
    ],
)
def test_refusals_and_several_letters_give_no_answer(text):
    assert extract_option(text, LETTERS, TEXTS) is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *(("the correct answer is answer1", "answer1"), ("Answer1", "answer1"), ("ANSWER 2", "answer2")),
        *(("2", "answer2"), ("(2)", "answer2"), ("The answer is 3", "answer3"), ("Answer 1: a cat", "answer1")),
        *(("The correct answer is answer2, not answer1", "answer2"), ("It must be answer4.", "answer4")),
        *(("answer1 or answer2", None), ("answer1/answer2/answer3", None), ("not answer1", None)),
        *(("There are 3 cats", None), ("answer12", None)),
    ],
)
def test_a_numbered_word_is_extracted_in_every_spelling(text, label):
    assert extract_option(text, WORDS, WORDS) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *(("True", "true"), ("the correct answer is False", "false"), ("TRUE!", "true"), ("It is false.", "false")),
        *(("That is not true", None), ("true/false", None), ("untrue", None)),
    ],
)
def test_a_word_is_extracted_as_an_answer(text, label):
    assert extract_option(text, ["true", "false"], ["true", "false"]) == label


def test_an_option_that_is_the_prefix_of_another_is_distinguished():
    cities = ["Paris", "Paris in Texas"]
    assert extract_option("It is Paris in Texas", cities, cities) == "Paris in Texas"
    assert extract_option("paris", cities, cities) == "Paris"
