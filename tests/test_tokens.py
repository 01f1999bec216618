"""What an edit says: by the weights it is the closed form of each architecture, measured it is what the logits do."""

import matplotlib.pyplot as plt
import pytest
import torch
from tiny import logits, randomise, tiny_model
from torch.nn.functional import cosine_similarity
from zoo import zoo_model

import headedit
from headedit import EditConfig, HeadEditError
from headedit.demo import MODEL_FOLDER
from headedit.hf.loading import load_tokenizer
from headedit.interpret.evidence.direct_path import direct_path
from headedit.interpret.evidence.tokens import token_text, tokens
from headedit.interpret.plots.tokens import tokens as plot_tokens


class Letters:
    """A tokenizer of ``size`` tokens that are called t0, t1, ..."""

    def __init__(self, size=128):
        self.size = size

    def __len__(self):
        return self.size

    def __call__(self, text):
        raise NotImplementedError("the examples here are token ids")

    def convert_ids_to_tokens(self, token):
        return f"t{token}"

    def decode(self, ids):
        return f"t{ids[0]}"


CLOSED = EditConfig(gate_init=-10.0)  # so that only heads that are set by hand are open

ROWS = [
    {"input_ids": [5, 9, 20, 31, 7], "labels": [-100, -100, 20, 31, 7]},
    {"input_ids": [6, 8, 40], "labels": [-100, 8, 40]},
]

# by type: what stands behind the projection, the norm before the unembedding, and whether that removes the mean
NORMS = {
    "llama": (None, "model.norm", False),
    "gemma": (None, "model.norm", False),
    "gemma2": ("model.layers.1.post_attention_layernorm", "model.norm", False),
    "gemma3_text": ("model.layers.1.post_attention_layernorm", "model.norm", False),
    "olmo2": ("model.layers.1.post_attention_layernorm", "model.norm", False),
    "gpt2": (None, "transformer.ln_f", True),
    "gpt_neox": (None, "gpt_neox.final_layer_norm", True),
    "falcon": (None, "transformer.ln_f", True),
    "opt": (None, "model.decoder.final_layer_norm", True),
    "cohere": (None, "model.norm", True),
    "granite": (None, "model.norm", False),
}


def weight_of(model, name):
    """The factor of a norm: Gemma's is 1 more than its weight."""
    weight = model.get_submodule(name).weight.detach()
    return 1 + weight if model.config.model_type.startswith("gemma") else weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", sorted(NORMS))
def test_the_direct_path_of_an_offset_follows_the_weights_of_its_architecture(model_type, dtype):
    model = tiny_model(model_type)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases, which are all alike in a new model
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            elif "embed" not in name:
                parameter.mul_(5)
    model = model.to(dtype)
    edits = headedit.attach(model, config=CLOSED)
    site = next(site for site in edits.sites if site.layer == 1)
    offset = torch.randn(site.head_dim, generator=generator)
    edits.set_head(1, 2, offset=offset)
    behind, before, centred = NORMS[model_type]
    projection = site.module.weight.detach().float()
    projection = projection.T if model_type == "gpt2" else projection
    d = projection[:, 2 * site.head_dim : 3 * site.head_dim] @ offset
    if behind is not None:
        d = d * weight_of(model, behind).float()
    d = d - d.mean() if centred else d
    expected = model.get_output_embeddings().weight.detach().float() @ (d * weight_of(model, before).float())
    acting = edits.module.site_edits[1].effective()["offset"].view(1, -1)
    found = direct_path(edits, [site]).logits(site, acting)[0]
    exact = dtype == torch.float32
    assert cosine_similarity(found, expected, dim=0) > (0.999999 if exact else 0.999)
    (words,) = tokens(edits, Letters(), top=3, progress=False)
    assert (words.head.layer, words.head.head, words.obstacle) == (1, 2, None)
    if exact:
        assert [token for token, _ in words.weights.promotes] == [f"t{i}" for i in expected.topk(3).indices]
        assert [token for token, _ in words.weights.suppresses] == [f"t{i}" for i in (-expected).topk(3).indices]
    values = [value for _, value in words.weights.promotes]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0 > words.weights.suppresses[0][1]


@pytest.mark.parametrize("model_type", ["gemma2", "gpt2"])
def test_the_change_of_the_logits_is_linear_in_the_change_of_the_heads(model_type):
    edits = headedit.attach(tiny_model(model_type))
    path, site = direct_path(edits, edits.sites), edits.sites[0]
    one, two = torch.randn(2, site.width, generator=torch.Generator().manual_seed(0))
    image = path.logits(site, torch.stack([one, two, 3 * one, one + two, 0 * two]))
    assert torch.allclose(image[2], 3 * image[0], rtol=1e-3, atol=1e-5)
    assert torch.allclose(image[3], image[0] + image[1], rtol=1e-3, atol=1e-5)
    assert (image[4] == 0).all()


def test_an_offset_made_for_a_token_promotes_it(llama):
    edits = headedit.attach(llama, config=CLOSED)
    projection = edits.sites[0].module.weight[:, 16:32]
    edits.set_head(0, 1, offset=(projection.T @ llama.lm_head.weight[77]).detach())
    edits.set_head(1, 3, offset=-(edits.sites[1].module.weight[:, 48:].T @ llama.lm_head.weight[99]).detach())
    first, second = tokens(edits, Letters(), top=1, progress=False)
    assert first.weights.promotes[0][0] == "t77"
    assert second.weights.suppresses[0][0] == "t99"
    assert first.measured is first.scale is None


def test_measured_tokens_are_the_mean_change_of_the_logits_by_one_edit_alone(llama):
    edits = headedit.attach(llama)
    randomise(edits)
    chosen = [(0, 1), (1, 0)]
    found = tokens(edits, Letters(), ROWS, heads=chosen, top=128, batch_size=1, progress=False)
    acting = {site.layer: edit.effective() for site, edit in edits.module.pairs()}
    edits.detach()
    for words, (layer, head) in zip(found, chosen, strict=True):
        model = tiny_model("llama")
        where = [[1, 2, 3], [0, 1]]  # the tokens that predict a label
        base = torch.cat(
            [logits(model, torch.tensor([r["input_ids"]]))[0, w] for r, w in zip(ROWS, where, strict=True)]
        )
        alone = headedit.attach(model).module.site_edits[layer]
        with torch.no_grad():
            for vector in ("offset", "scale"):
                alone.vectors[vector][head] = acting[layer][vector][head]
                alone.gates[f"{vector}_gate"].fill_(1e4)
        after = torch.cat(
            [logits(model, torch.tensor([r["input_ids"]]))[0, w] for r, w in zip(ROWS, where, strict=True)]
        )
        change = (after - base).mean(0)
        change = change - change.mean()
        by_token = dict(words.measured.promotes)
        assert len(by_token) == 128
        assert torch.allclose(torch.tensor([by_token[f"t{i}"] for i in range(128)]), change, atol=1e-5)
        assert [token for token, _ in words.measured.suppresses] == [t for t, _ in reversed(words.measured.promotes)]


def test_the_effect_of_a_scale_on_its_head_is_reported(llama):
    edits = headedit.attach(llama, config=CLOSED)
    edits.set_head(0, 2, scale=-0.5)
    edits.set_head(1, 1, offset=torch.ones(16))
    scaled, shifted = tokens(edits, Letters(), ROWS, progress=False)
    assert scaled.weights is None
    assert scaled.measured is not None
    assert shifted.scale is None
    change = scaled.scale
    assert (change.low, change.mean, change.high, change.flipped) == (-0.5, -0.5, -0.5, 1.0)
    assert change.norm == pytest.approx(1.5 * 16**0.5)
    assert change.share == pytest.approx(1.5, rel=1e-5)
    with torch.no_grad():
        edits.module.site_edits[0].vectors["scale"][2, 8:] = 0.0
    (change,) = (words.scale for words in tokens(edits, Letters(), heads=[(0, 2)], progress=False))
    assert (change.low, change.mean, change.high, change.flipped, change.share) == (-0.5, 0.25, 1.0, 0.5, None)


OBSTACLES = {
    "bitnet": "is followed directly by a norm or another function",
    "bert": "transform_act_fn, before the unembedding, is neither linear nor a norm",
    "zamba2": "its output is not as wide as what",
    "gemma3n_text": "does not get the last layer's output only through a norm",
}


@pytest.mark.parametrize("model_type", sorted(OBSTACLES))
def test_tokens_that_cannot_be_read_from_the_weights_can_be_measured(model_type):
    edits = headedit.attach(zoo_model(model_type))
    randomise(edits)
    with pytest.raises(HeadEditError, match=f"{OBSTACLES[model_type]}.*Give data=... to measure them"):
        tokens(edits, Letters(), progress=False)
    for words in tokens(edits, Letters(), ROWS, progress=False):
        assert words.weights is None
        assert OBSTACLES[model_type] in words.obstacle
        assert words.measured.promotes[0][1] > 0


def test_tokens_are_not_read_from_the_weights_where_layers_norm_the_residual_stream():
    edits = headedit.attach(tiny_model("opt", do_layer_norm_before=False))
    randomise(edits)
    with pytest.raises(HeadEditError, match=r"layers\.0\.final_layer_norm, behind the residual stream, changes what"):
        tokens(edits, Letters(), progress=False)
    for words in tokens(edits, Letters(), ROWS, progress=False):
        assert words.weights is None
        assert words.measured is not None


def test_padding_rows_of_the_unembedding_are_not_tokens(llama):
    edits = headedit.attach(llama, config=CLOSED)
    edits.set_head(0, 1, offset=(edits.sites[0].module.weight[:, 16:32].T @ llama.lm_head.weight[127]).detach())
    (words,) = tokens(edits, Letters(120), ROWS, top=200, progress=False)
    for said in (words.weights, words.measured):
        assert sorted(token for token, _ in said.promotes) == sorted(f"t{i}" for i in range(120))


def test_a_mistake_in_tokens_is_explained(llama):
    edits = headedit.attach(llama)
    randomise(edits)
    for size in (129, 90):
        with pytest.raises(HeadEditError, match=f"knows {size} tokens, but the model's unembedding has 128"):
            tokens(edits, Letters(size))
    with pytest.raises(HeadEditError, match="tokenizer: found NoneType, expected the model's tokenizer"):
        tokens(edits, None)
    with pytest.raises(HeadEditError, match="top: found 0, expected 1 or more"):
        tokens(edits, Letters(), top=0)
    with pytest.raises(HeadEditError, match=r"top: found 2\.5, expected a whole number"):
        tokens(edits, Letters(), top=2.5)
    edits.detach()
    with pytest.raises(HeadEditError, match="These edits are detached"):
        tokens(edits, Letters())
    headless = headedit.attach(llama.model)
    randomise(headless)
    with pytest.raises(HeadEditError, match=r"LlamaModel has no single unembedding.*AutoModelForCausalLM"):
        tokens(headless, Letters())
    several = headedit.attach(zoo_model("musicgen"))
    randomise(several)
    with pytest.raises(HeadEditError, match="has no single"):
        tokens(several, Letters())


@pytest.mark.parametrize("measured", [False, True])
def test_reading_tokens_leaves_the_model_and_its_edits_unchanged(llama, ids, measured):
    edits = headedit.attach(llama)
    randomise(edits)
    wanted, vectors = logits(llama, ids), edits.snapshot()
    hooks = {name: (list(m._forward_pre_hooks), list(m._forward_hooks)) for name, m in llama.named_modules()}
    random = torch.get_rng_state()
    tokens(edits, Letters(), ROWS if measured else None, progress=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, edits.snapshot(), vectors))
    assert torch.equal(logits(llama, ids), wanted)
    assert {n: (list(m._forward_pre_hooks), list(m._forward_hooks)) for n, m in llama.named_modules()} == hooks


def test_tokens_are_shown_with_the_space_they_begin_with():
    class Pieces:
        vocabulary = ("▁the", "Ġcat", "s", "æĪ", "▁")
        texts = ("the", " cat", "s", "\ufffd", "")

        def convert_ids_to_tokens(self, token):
            return self.vocabulary[token]

        def decode(self, ids):
            return self.texts[ids[0]]

    assert [token_text(Pieces(), i) for i in range(5)] == [" the", " cat", "s", "æĪ", "▁"]
    tokenizer = load_tokenizer(str(MODEL_FOLDER))
    token = tokenizer.convert_tokens_to_ids("reverse")
    assert token_text(tokenizer, token).strip() == "reverse"


def test_the_picture_of_tokens_has_a_panel_per_head(llama):
    edits = headedit.attach(llama)
    randomise(edits)
    edits.set_head(0, 0, scale=0.5)
    edits.set_head(0, 1, offset=torch.ones(16))
    words = tokens(edits, Letters(), progress=False)
    figure = plot_tokens(words, top=4, most=6)
    panels = [axis for axis in figure.axes if axis.get_title()]
    longest = sorted(words, key=lambda word: -word.head.effective("offset").norm())
    assert [axis.get_title().split("\n")[0] for axis in panels] == [word.head.name for word in longest[:6]]
    place = longest.index(words[1])
    assert [text.get_text() for text in panels[place].texts] == [
        *(token for token, _ in words[1].weights.promotes[:4]),
        *(token for token, _ in reversed(words[1].weights.suppresses[:4])),
    ]
    assert [bar.get_width() > 0 for bar in panels[place].patches] == [True] * 4 + [False] * 4
    assert f"the 6 of {len(words)} heads that change most" in figure.get_suptitle()
    by_scale = plot_tokens(words[:1]).axes[0]
    assert by_scale.get_title() == "L0H0\nscale 0.5 to 0.5"
    assert "a scale can only be" in by_scale.texts[0].get_text()
    measured = plot_tokens(tokens(edits, Letters(), ROWS, progress=False), top=4)
    assert "mean change of a logit on data" in measured.get_supxlabel()
    titles = [axis.get_title() for axis in measured.axes]
    assert "changes 50% of the head's output" in next(title for title in titles if title.startswith("L0H0"))
    assert len({axis.get_xlim() for axis in measured.axes if axis.patches}) == 1  # logits can be compared
    plt.close("all")


def test_the_picture_of_tokens_begins_with_the_heads_of_largest_effect(llama):
    edits = headedit.attach(llama)
    randomise(edits)
    words = tokens(edits, Letters(), progress=False)
    effects = headedit.leave_one_out(edits, ROWS, progress=False)
    by_size = sorted(zip(effects.heads, effects.effects.tolist(), strict=True), key=lambda pair: -pair[1])
    figure = plot_tokens(words, most=3, effects=effects)
    expected = [f"{head.name}:  effect {rise:.2g} nats per token" for head, rise in by_size[:3]]
    assert [axis.get_title().split("\n")[0] for axis in figure.axes if axis.get_title()] == expected
    assert f"the 3 of {len(words)} heads of largest effect" in figure.get_suptitle()
    plt.close("all")


def test_a_picture_of_tokens_that_cannot_be_drawn_is_refused(llama):
    edits = headedit.attach(llama, config=EditConfig(vectors="offset"))
    randomise(edits)
    words = tokens(edits, Letters(), progress=False)
    with pytest.raises(HeadEditError, match=r"nothing was measured; give tokens\(\) data"):
        plot_tokens(words, show="measured")
    with pytest.raises(HeadEditError, match="show: found 'other'"):
        plot_tokens(words, show="other")
    with pytest.raises(HeadEditError, match="no head is given"):
        plot_tokens([])
