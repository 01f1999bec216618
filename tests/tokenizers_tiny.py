"""Small tokenizers, built in place: byte-level BPE as in Llama 3 and Qwen, metaspace as in Llama 2."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "What is the sum of two and three? The sum is five. user assistant system \n\n",
    "Below is an instruction that describes a task. ### Response:\n ### Instruction:\n the answer is a b c.\n\n\n",
] * 20

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_TO_THE_LINE_END = (  # as the templates that TRL trains with: header and line end are in the marks
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n{{ m.content }}"
    "<|im_end|>\n{% endgeneration %}{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # as Qwen3 does: only the last turn has a place for thoughts
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n"
    "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADED = (  # as Qwen3 without thinking: only the generation prompt has a place for thoughts
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
ENDED = (  # as Phi-3 does: the end of text behind the last turn
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
UNSTABLE = (  # numbers the turns from the end
    "{% for m in messages %}<|im_start|>{{ messages | length - loop.index }}{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>0assistant\n{% endif %}"
)
UNSTABLE_MARKED = UNSTABLE.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}",
)
UNSTABLE_MARKED_TO_THE_LINE_END = UNSTABLE.replace(
    "{{ m.content }}<|im_end|>\n",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}"
    "{{ m.content }}<|im_end|>\n{% endif %}",
)
PARTS = (  # of a model of images and text: takes its content as a list of parts
    "{% for m in messages %}<|im_start|>{% if m.role == 'assistant' %}{% generation %}{% for p in m.content %}"
    "{{ p.text }}{% endfor %}<|im_end|>{% endgeneration %}{% endif %}{% endfor %}"
)
REFUSING = "{{ raise_exception('System role not supported') }}"


def byte_level(chat_template=None, *, bos=True, eos="</s>"):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _fast(made, chat_template, eos)


def metaspace(chat_template=None):
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    made.decoder = decoders.Metaspace()
    letters = [chr(i) for i in range(32, 127)] + ["\n"]
    made.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIALS], initial_alphabet=letters)
    )
    return _fast(made, chat_template, "</s>")


def _fast(made, chat_template, eos):
    others = [token for token in SPECIALS[3:] if token != eos]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token=eos, additional_special_tokens=others
    )
    fast.chat_template = chat_template
    return fast
