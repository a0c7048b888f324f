"""Texts that are encoded in the step: shuffled tags, trained text encoders, new words; what a run
with them promises.
"""

import itertools
import json

import pytest
import torch
from PIL import Image

import smidgen
from smidgen.api.planning import plan_run
from smidgen.core.delta import Delta
from smidgen.diffusion.sampler import draw_noise, sample_generator
from smidgen.errors import SmidgenError, UsageError
from smidgen.methods import configure
from smidgen.models.labels import labels_of
from smidgen.models.pretrained import load_base
from smidgen.training import previews
from smidgen.training.captions import task_of
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.images import read_latents
from smidgen.training.loop import fresh_state
from smidgen.training.network import training_network
from smidgen.training.objective import batch_loss, draw_batch
from smidgen.training.run import fresh_delta
from smidgen.training.texts import shuffled
from tests.tiny.images import write_image
from tests.tiny.pipelines import TINY_PIPELINES

CAPTIONS = ("a photo of <owl>, hat, sky, sun", "a photo of <owl>, sea, hat", "sky", "a, b, c")
SETTINGS = {
    "batch_size": 2,
    "lr": 0.05,
    "label_dropout": 0.3,
    "validation_share": 0.25,
    "trackers": (),
    "progress": False,
    "steps": 2,
}
WORD = {
    "method": "textual-inversion",
    "token": "<owl>",
    "method_config": {"init_word": "owl", "num_vectors": 2},
}
ENCODER = {"method": "full", "train_text_encoder": True}
TAGS = {"method": "lora", "shuffle_tags": True, "keep_tags": 1}
PROMPTS = ["a photo of <owl>, sky", "a fox"]
DRAWN = {"steps": 2, "guidance": 2.0, "seed": 3, "sampler": "ddim"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {name: TINY_PIPELINES[name].save(root / name) for name in ("sd", "sdxl", "sd3")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photos"
    for number, text in enumerate(CAPTIONS):
        write_image(root / f"{number}.png", seed=number)
        (root / f"{number}.txt").write_text(text)
    return root


def train(base, photos, output, **settings) -> Delta:
    given = SETTINGS | {"cache_dir": photos.parent / "cache"} | settings
    return smidgen.train(base, photos, output=output, **given)


def config_of(photos, output, **settings) -> RunConfig:
    names = TrainingConfig.__dataclass_fields__
    training = {key: value for key, value in settings.items() if key in names}
    rest = {key: value for key, value in settings.items() if key not in names}
    rest["method_config"] = configure(rest["method"], rest.pop("method_config", {}))
    return RunConfig(
        data=photos,
        output=output,
        cache_dir=photos.parent / "cache",
        training=TrainingConfig(batch_size=4, label_dropout=0.0, trackers=(), **training),
        **rest,
    ).resolved()


def state_of(network) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def same_state(network, before) -> bool:
    return all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def bytes_of(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tags_behind_the_kept_ones_are_shuffled_and_none_is_lost():
    text = "1girl,  solo, hat,sky , sun"
    found = {shuffled(text, 2, order) for order in range(200)}
    assert found == {
        f"1girl, solo, {', '.join(rest)}" for rest in itertools.permutations(["hat", "sky", "sun"])
    }
    assert shuffled("an owl at night", 0, 5) == "an owl at night"
    assert shuffled("a, b", 7, 5) == "a, b"


def test_the_condition_of_a_step_is_what_the_stock_pipeline_makes_of_the_shuffled_text(
    folders, photos, tmp_path
):
    """Two encoders; each draw shuffles anew, from a stream of its own."""
    base = load_base(folders["sdxl"])
    config = config_of(photos, tmp_path / "run", **TAGS)
    latents = read_latents(base, config)
    stock = TINY_PIPELINES["sdxl"].load(folders["sdxl"])
    with base.conditioner.open() as reader:
        delta = fresh_delta(base, config, latents, reader)
        task = task_of(base, delta, latents, config, reader=reader)
        streams = fresh_state(
            delta, [torch.arange(4)], config.training, torch.arange(0), tags=True
        ).streams
        images = torch.zeros(4, dtype=torch.long)
        batch = draw_batch(latents, images, streams, task, config.training)
        found = task.condition(batch.labels, batch.orders)
        texts = [shuffled(CAPTIONS[0], 1, order) for order in batch.orders.tolist()]
        assert len(set(texts)) > 1
        assert all(text.startswith("a photo of <owl>, ") for text in texts)
        text, _, pooled, _ = stock.encode_prompt(prompt=texts, do_classifier_free_guidance=False)
        torch.testing.assert_close(found["text"], text)
        torch.testing.assert_close(found["pooled"], pooled)
        again = draw_batch(latents, images, streams, task, config.training).orders
        assert not torch.equal(again, batch.orders)
        as_written = task.condition(batch.labels, None)
        text, _, _, _ = stock.encode_prompt(CAPTIONS[0], do_classifier_free_guidance=False)
        torch.testing.assert_close(as_written["text"][:1], text)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("kind", [ENCODER, WORD], ids=["encoder", "word"])
def test_gradients_reach_what_is_trained_and_the_base_stays(folders, photos, tmp_path, name, kind):
    base = load_base(folders[name])
    settings = kind | {"gradient_checkpointing": True}
    config = config_of(photos, tmp_path / "run", **settings)
    latents = read_latents(base, config)
    before = state_of(base.denoiser)
    with base.conditioner.open() as reader:
        delta = fresh_delta(base, config, latents, reader)
        task = task_of(base, delta, latents, config, reader=reader)
        encoders = [state_of(one.network) for one in reader.encoders]
        streams = fresh_state(delta, [torch.arange(4)], config.training, torch.arange(0)).streams
        batch = draw_batch(latents, torch.arange(4), streams, task, config.training)
        losses = {}
        for wanted in (True, False):
            training = TrainingConfig(batch_size=4, gradient_checkpointing=wanted)
            delta.zero_grad()
            with training_network(base, delta, task, training) as network:
                loss = batch_loss(network, batch, task, training, torch.float32)
                loss.mean().backward()
            losses[wanted] = {n: p.grad for n, p in delta.named_parameters()}
        for one, kept in zip(reader.encoders, encoders, strict=True):
            assert same_state(one.network, kept)
            assert not any(p.requires_grad or p.grad is not None for p in one.network.parameters())
            assert not any(module.training for module in one.network.modules())
    assert same_state(base.denoiser, before)
    assert all(p.grad is None for p in base.denoiser.parameters())
    reached = {key for key, grad in losses[False].items() if grad is not None and grad.any()}
    for key, grad in losses[True].items():  # recomputed or not
        if grad is not None:
            torch.testing.assert_close(grad, losses[False][key])
    if kind is WORD:
        assert reached == set(losses[False])
        components = ("text_encoder", "text_encoder_2") if name == "sdxl" else ("text_encoder",)
        assert set(losses[False]) == {f"{one}.token.rows" for one in components}
    else:
        layer = "encoder.layers.0.self_attn.v_proj.weight"
        assert f"text_encoder.{layer}" in reached
        assert any(not key.startswith("text_encoder") for key in reached)
        if name == "sdxl":
            assert f"text_encoder_2.text_model.{layer}" in reached
            assert "text_encoder_2.text_projection.weight" in reached


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ENCODER, WORD, TAGS], ids=["encoder", "word", "tags"])
def test_a_run_resumes_bit_for_bit_and_leaves_the_folder_of_the_base(
    folders, photos, tmp_path, kind, monkeypatch
):
    base = load_base(folders["sd"])
    before = bytes_of(folders["sd"])
    for name in ("STEPS", "GRID_IMAGES", "GRID_CAPTIONS"):
        monkeypatch.setattr(previews, name, 1)
    settings = kind | {"checkpoint_every": 1, "ema_decay": 0.5, "sample_every": 2}
    train(base, photos, tmp_path / "whole", **settings)
    train(base, photos, tmp_path / "two", **settings | {"steps": 1})
    train(base, photos, tmp_path / "two", **settings)
    whole, two = (tmp_path / name / "delta.safetensors" for name in ("whole", "two"))
    assert whole.read_bytes() == two.read_bytes()
    assert bytes_of(folders["sd"]) == before
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert any("validation_loss" in line for line in lines)
    assert (tmp_path / "whole" / "samples" / "step-2.png").is_file()
    assert Delta.load(whole).components == (() if kind is TAGS else ("text_encoder",))


def pictures(images) -> torch.Tensor:
    return torch.stack(
        [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in images]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("kind", [ENCODER, WORD], ids=["encoder", "word"])
def test_stock_diffusers_reads_prompts_of_the_folded_folder_as_the_delta_does(
    folders, photos, tmp_path, name, kind
):
    base = load_base(folders[name])
    train(base, photos, tmp_path / "run", **kind | {"lr": 0.3, "steps": 1})
    delta = Delta.load(tmp_path / "run" / "delta.safetensors")
    before = bytes_of(folders[name])
    out = smidgen.fold(base, delta, format="diffusers", output=tmp_path / "out")
    stock = TINY_PIPELINES[name].load(out)
    found, plain = base.conditioner.encode(PROMPTS, delta), base.conditioner.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        texts = stock.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        torch.testing.assert_close(found["text"][row : row + 1], texts[0])
        if name == "sdxl":
            torch.testing.assert_close(found["pooled"][row : row + 1], texts[2])
    differs = [not torch.equal(found["text"][row], plain["text"][row]) for row in range(2)]
    assert differs == ([True, False] if kind is WORD else [True, True])
    # what was made without the delta is not what is found with it, nor the other way round
    assert torch.equal(base.conditioner.encode(PROMPTS)["text"], plain["text"])
    assert torch.equal(base.conditioner.encode(PROMPTS, delta)["text"], found["text"])
    assert bytes_of(folders[name]) == before

    drawn = smidgen.sample(base, delta=delta, prompts=PROMPTS, **DRAWN)
    folded = smidgen.sample(load_base(out), prompts=PROMPTS, **DRAWN)
    # rounding to 256 levels of values that differ by float32 alone
    assert (pictures(drawn) - pictures(folded)).abs().max() <= 1
    assert isinstance(drawn[0], Image.Image)

    # stock diffusers draws that too, with every step of the schedule as a step of sampling
    steps = DRAWN | {"steps": len(base.process.schedule.alphas_cumprod)}
    drawn = smidgen.sample(base, delta=delta, prompts=PROMPTS, **steps)
    images = []
    for number, prompt in enumerate(PROMPTS):
        noise = draw_noise(base.latent_shape, [sample_generator(steps["seed"], number)])
        images += stock(
            prompt=prompt,
            latents=TINY_PIPELINES[name].latents(stock, noise),
            num_inference_steps=steps["steps"],
            guidance_scale=steps["guidance"],
            height=base.image_size.height,
            width=base.image_size.width,
        ).images
    assert (pictures(drawn) - pictures(images)).abs().max() <= 1


@pytest.mark.slow
def test_a_dry_run_counts_encoders_and_names_what_is_wrong(folders, photos, tmp_path):
    config = config_of(photos, tmp_path / "run", **ENCODER)
    facts = plan_run(folders["sd"], config, given={})
    plain = plan_run(folders["sd"], config_of(photos, tmp_path / "run", method="full"), given={})
    with load_base(folders["sd"]).conditioner.open() as reader:
        size = sum(p.numel() for p in reader.encoders[0].network.parameters())
    assert facts["refusal"] is None
    assert facts["trainable"] - plain["trainable"] == size
    assert facts["total"] - plain["total"] == size
    assert facts["memory"]["weights"] - plain["memory"]["weights"] == 4 * size
    assert facts["memory"]["step"] > plain["memory"]["step"]

    facts = plan_run(folders["sdxl"], config_of(photos, tmp_path / "run", **WORD), given={})
    assert facts["trainable"] == 2 * (32 + 24)
    wrong = WORD | {"token": "a"}
    with pytest.raises(UsageError, match='token "a" is a word that the base knows already'):
        plan_run(folders["sd"], config_of(photos, tmp_path / "run", **wrong), given={})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (WORD | {"token": None}, r"trains a new word: give it as token"),
        (WORD | {"token": "two words"}, 'token is "two words"; expected one word'),
        (WORD | {"token": "a"}, 'token "a" is a word that the base knows already'),
        (WORD | {"token": "<fox>"}, 'token "<fox>" stands in no caption and no prompt'),
        (WORD | {"method_config": {}}, "starts as a word that the base knows: give one"),
        (WORD | {"method_config": {"init_word": "!"}}, 'init_word "!" is none that the base can'),
        (TAGS | {"token": "<owl>"}, 'token is of no use to task "fine-tune"'),
        (ENCODER | {"method": "lora"}, "train_text_encoder is of no use to lora, .* use: full"),
        (TAGS | {"shuffle_tags": False}, "give shuffle_tags too"),
        (TAGS | {"captions": "none"}, "shuffle_tags shuffles those of captions, and there are"),
    ],
)
def test_misuse_is_told_by_name(folders, photos, tmp_path, settings, message):
    base = load_base(folders["sd"])
    with pytest.raises(UsageError, match=message):
        train(base, photos, tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TAGS, 'shuffle_tags is of no use to base "glyphs"'),
        (ENCODER, 'train_text_encoder is of no use to base "glyphs"'),
        (WORD, 'textual-inversion is of no use to base "glyphs"'),
    ],
)
def test_a_base_of_classes_has_no_texts_to_train_on(photos, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        train(load_base("glyphs"), photos, tmp_path / "run", **settings)


def test_a_word_is_of_one_encoder_and_goes_into_no_single_file(folders, photos, tmp_path):
    base = load_base(folders["sd"])
    delta = train(base, photos, tmp_path / "run", steps=1, **WORD)
    with pytest.raises(SmidgenError, match="a single file has no tokenizer to know a new word"):
        smidgen.fold(base, delta, format="single-file", output=tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"is too long: .* reads 77 tokens"):
        # 37 words of two tokens each, a start and an end, and a letter more
        smidgen.sample(base, delta=delta, prompts="<owl> " * 37 + "a b", steps=1)
    assert len(smidgen.sample(base, delta=delta, prompts="<owl> " * 37 + "a", steps=1)) == 1


def test_a_pipeline_without_words_of_several_vectors_spells_them(folders, photos, tmp_path):
    base = load_base(folders["sd3"])
    delta = train(base, photos, tmp_path / "run", steps=1, **WORD)
    assert delta.components == ("text_encoder", "text_encoder_2")
    out = smidgen.fold(base, delta, format="diffusers", output=tmp_path / "out")
    stock = TINY_PIPELINES["sd3"].load(out)
    text, _, pooled, _ = stock.encode_prompt(
        "a <owl> <owl>_1 b".replace("<owl>_1", "<owl>_1"), None, None,
        do_classifier_free_guidance=False,
    )  # fmt: skip
    found = base.conditioner.encode(["a <owl> b"], delta)
    torch.testing.assert_close(found["text"], text)
    torch.testing.assert_close(found["pooled"], pooled)


def test_a_subject_is_learned_as_a_new_word(folders, photos, tmp_path):
    """DreamBooth's prompt of the subject holds the word; drawing needs no prompt."""
    base = load_base(folders["sd"])
    subject = {"task": "dreambooth", "class_name": "owl", "prior_weight": 0.0, "captions": "none"}
    delta = train(base, photos, tmp_path / "run", steps=1, **WORD | subject)
    assert delta.provenance.training["dreambooth"]["instance_prompt"] == "a photo of <owl> owl"
    assert delta.components == ("text_encoder",)
    row = base.conditioner.encode(["a photo of <owl> owl"], delta)
    found = labels_of(base, delta).conditions(torch.tensor([0]))
    assert torch.equal(found["text"], row["text"])
