"""The tiny tokenizer: atoms, round trips, the chat form."""

import pytest
from transformers import PreTrainedTokenizerFast

from models.protocol import SYSTEM_PROMPT
from models.tiny import phrases, world
from models.tiny.tokenizer import LARGEST_INTEGER, SPECIAL_TOKENS, build_tokenizer, token_id


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text, add_special_tokens=False)]


def test_building_twice_gives_the_same_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_integers_letters_colours_and_special_tokens_are_single_tokens(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    texts = [str(value) for value in range(LARGEST_INTEGER + 1)] + list(world.LETTERS)
    texts += [f" {color}" for color in world.COLORS] + list(SPECIAL_TOKENS)
    assert len({token_id(tokenizer, text) for text in texts}) == len(texts)


def test_an_atom_that_is_no_single_token_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="2 tokens, not one"):
        token_id(tokenizer, "K7")


def test_a_box_is_nine_tokens_whatever_follows(tokenizer: PreTrainedTokenizerFast) -> None:
    box = ['{"bbox_2d": [', "2", ", ", "4", ", ", "14", ", ", "112", "]}"]
    for after in ("", " The crop", "</think>", "]}", "."):
        assert pieces(tokenizer, phrases.box_json((2, 4, 14, 112)) + after)[:9] == box


def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ["Zoë asked: K7?\n\n{x} <b> 007", *phrases.corpus()]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_code_letters_and_colours_never_merge_with_a_phrase(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pieces(tokenizer, " The crop says T4.") == [" The crop says ", "T", "4", "."]
    assert pieces(tokenizer, phrases.read_question("teal")) == ["what code is on the", " teal", " card?"]


def test_the_look_again_prompt_is_short(tokenizer: PreTrainedTokenizerFast) -> None:
    # 27 measured: half of it is the example box, digit by digit.
    assert len(pieces(tokenizer, SYSTEM_PROMPT)) <= 30


def test_chat_template_follows_qwen(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hm?"}]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nbe brief<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>hm?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    closed = tokenizer.apply_chat_template(messages[1:], tokenize=False, add_generation_prompt=False)
    assert closed.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert closed.endswith("hm?<|im_end|>\n")
