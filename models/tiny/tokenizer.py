"""The tiny model's tokenizer: byte-level BPE built from the world's own sentences, with Qwen2.5-VL's special
tokens.

On two CPU cores the number of tokens is the cost of everything, so merges cross spaces ("superwords"): a
clause of a template is one token. Kept apart are the things a model must choose one by one: integers, code
letters, colours, places, tags, and the two ends of a box. Any other text still encodes, byte by byte if need
be.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.tiny import phrases, world

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PAD_TOKEN = "<|endoftext|>"
END_TOKEN = "<|im_end|>"
LARGEST_INTEGER = world.PICTURE_SIZE  # integers 0..448 are single tokens

# Pieces that never merge with their neighbours. A capital is a code letter only before a digit: "You" stays
# whole.
_ATOMS = (
    r'\{"bbox_2d": \[|\]\}|</?think>|</?answer>|[0-9]+|[A-Z](?=[0-9])| (?:'
    + "|".join(world.COLORS)
    + r")(?![a-z])| ?(?:"
    + "|".join(world.PLACES)
    + r")"
)
# A clause, with its punctuation and the space after it.
_CLAUSE = r"[^.,?\n]*[.,?\n]+ ?"

# Qwen2.5-VL's template without videos, tools and picture numbering.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, the same on every call."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_ATOMS), "isolated"),
            pre_tokenizers.Split(Regex(_CLAUSE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,  # never reached: merging stops when every piece of the corpus is one token
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        show_progress=False,
    )
    bpe.train_from_iterator(_training_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_TOKEN, pad_token=PAD_TOKEN, model_max_length=4096
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _training_texts() -> list[str]:
    """The fixed corpus. Words are more frequent than clauses, so merges build words first, then clauses."""
    texts = phrases.corpus()
    words = [word for text in texts for word in _words(text)]
    integers = [str(value) for value in range(LARGEST_INTEGER + 1)]
    colors = [f" {color}" for color in world.COLORS]
    places = [space + place for place in world.PLACES for space in ("", " ")]
    return texts * 2 + words * 2 + (integers + colors + places) * 4


def _words(text: str) -> list[str]:
    return [" " + word.strip('.,?<>/"') for word in text.split() if word.strip('.,?<>/"').islower()]


def token_id(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """The id of a text that is one token."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"{text!r} is {len(ids)} tokens, not one: pick an atom of the tokenizer")
    return int(ids[0])
