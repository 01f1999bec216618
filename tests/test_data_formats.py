"""Records of every form are told by their fields, and what is wrong with one is said."""

import pytest

from headedit import HeadEditError
from headedit.data import to_messages, to_pair
from headedit.data.formats import is_learnt

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
ADAPTERS = {"instruction": "q", "input": "", "output": "long", "answer": "a"}


@pytest.mark.parametrize(
    ("record", "messages", "format"),
    [
        ({"prompt": "q", "response": "a"}, [USER, ASSISTANT], "response"),
        ({"prompt": "q", "completion": "a"}, [USER, ASSISTANT], "completion"),
        (ADAPTERS, [USER, ASSISTANT], "llm-adapters"),
        ({"instruction": "q", "input": None, "output": "a"}, [USER, ASSISTANT], "alpaca"),
        ({"instruction": "q", "output": "a", "system": "s"}, [SYSTEM, USER, ASSISTANT], "alpaca"),
        ({"messages": [SYSTEM, USER, ASSISTANT, USER]}, [SYSTEM, USER, ASSISTANT], "messages"),
        ({"messages": [USER, ASSISTANT], "prompt": "q"}, [USER, ASSISTANT], "messages"),
        ({"messages": [SYSTEM, USER, ASSISTANT], "system": "other"}, [SYSTEM, USER, ASSISTANT], "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ASSISTANT]},
            [USER, ASSISTANT],
            "messages",
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            [SYSTEM, USER, ASSISTANT],
            "sharegpt",
        ),
        (
            {"id": 1, "conversations": [{"from": "system", "value": "s"}, USER, {"from": "gpt", "value": "a"}]},
            [SYSTEM, USER, ASSISTANT],
            "sharegpt",
        ),
    ],
)
def test_the_format_of_a_record_is_recognised_by_its_fields(record, messages, format):
    assert to_messages(record, "here") == (messages, format)
    assert to_messages(record, "here", format) == (messages, format)


def test_an_explicit_format_overrides_the_fields():
    assert to_messages(ADAPTERS, "here", "alpaca") == ([USER, {"role": "assistant", "content": "long"}], "alpaca")
    with pytest.raises(HeadEditError, match=r"here: found the fields instruction, .*; expected messages\."):
        to_messages(ADAPTERS, "here", "messages")


def turns(*pairs):
    return {"conversations": [{"from": who, "value": text} for who, text in pairs]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (turns(("humn", "q"), ("gpt", "a")), r"here, turn 1: the from 'humn' is unknown\. Did you mean 'human'\?"),
        (turns(("human", "q"), ("gpt", " ")), r"here, turn 2: the response is empty"),
        (turns(("human", "q"), ("gpt", None)), r"here, turn 2: the field 'value' holds NoneType, expected text"),
        (turns(("human", "q")), r"here: the conversation has no response"),
        ({"messages": []}, r"here: the conversation has no response"),
        ({"messages": "q"}, r"here: the field 'messages' holds str, expected a list of turns"),
        ({"messages": ["q"]}, r"here, turn 1: expected role/content or from/value, found str"),
        ({"messages": [{"role": "user"}]}, r"here, turn 1: found the fields role; expected role/content or"),
        ({"messages": [{"role": ["user"], "content": "q"}]}, r"here, turn 1: the role \['user'\] is unknown"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"turn 1: the field 'content' holds list"),
    ],
)
def test_a_malformed_conversation_is_refused_by_its_turn(record, message):
    with pytest.raises(HeadEditError, match=message):
        to_messages(record, "here")


def test_a_conversation_is_refused_as_a_pair_of_texts():
    with pytest.raises(HeadEditError, match=r"here: holds a conversation, .* headedit\.load_data"):
        to_pair({"messages": [USER, ASSISTANT]}, "here")


def test_the_format_whose_fields_are_filled_is_taken_where_others_are_null():
    union = {"prompt": None, "response": None, "completion": None, "messages": [USER, ASSISTANT], "conversations": None}
    assert to_messages(union, "here") == ([USER, ASSISTANT], "messages")
    turns = [{**USER, "from": None, "value": None}, {"from": "gpt", "value": "a", "role": None, "content": None}]
    assert to_messages({"messages": turns}, "here") == ([USER, ASSISTANT], "messages")
    nulls = {"weight": None, "reasoning_content": None, "name": None}
    assert to_messages({"messages": [{**USER, **nulls}, {**ASSISTANT, **nulls}]}, "here")[0] == [USER, ASSISTANT]


def test_only_the_completion_of_a_conversational_prompt_and_completion_is_learnt():
    earlier = [SYSTEM, USER, {**ASSISTANT, "content": "first"}, USER]
    messages, format = to_messages({"prompt": earlier, "completion": [ASSISTANT]}, "here")
    assert (format, messages[-1]) == ("messages", ASSISTANT)
    assert [is_learnt(message) for message in messages] == [False] * 4 + [True]
    with pytest.raises(HeadEditError, match="here: the conversation has no response"):
        to_messages({"prompt": earlier, "completion": []}, "here")


@pytest.mark.parametrize(("weights", "learnt"), [((0, 1), [False, True]), ((1, 0), [True]), ((None, 1), [True, True])])
def test_a_turn_of_weight_0_is_not_learnt(weights, learnt):
    turns = [turn for weight in weights for turn in (USER, {**ASSISTANT, "weight": weight})]
    messages, _ = to_messages({"messages": turns}, "here")
    assert [is_learnt(message) for message in messages if message["role"] == "assistant"] == learnt


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({**ASSISTANT, "weight": 0.5}, r"here, turn 2: the weight is 0\.5, expected 0"),
        ({**ASSISTANT, "weight": 0}, r"here: the conversation has no response that follows a turn and has a weight"),
        ({**ASSISTANT, "reasoning_content": 3}, r"here, turn 2: the field 'reasoning_content' holds int"),
        ({**ASSISTANT, "reasoning_content": "\ud83d"}, r"here, turn 2: the field 'reasoning_content' holds half"),
        ({"\ud83d": 1}, r"here, turn 2: found the fields \\ud83d; expected"),
    ],
)
def test_a_turn_that_says_something_impossible_is_refused(turn, message):
    with pytest.raises(HeadEditError, match=message):
        to_messages({"messages": [USER, turn]}, "here")
