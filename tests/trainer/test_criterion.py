import csv
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from psp_rt.errors import PspError
from trainer.losses import criterion
from trainer.losses import identity as identities
from trainer.losses import lpips as perceptual
from trainer.losses.criterion import Criterion, LossWeights
from trainer.losses.identity import (
    ARCFACE,
    CURRICULARFACE,
    INNER_FACE,
    MOBILEFACENET,
    ArcFace,
    CurricularFace,
    Identity,
    MobileFaceNet,
)
from trainer.losses.lpips import VGG, LpipsAlex, LpipsVgg
from trainer.losses.moco import Moco, ResNet50
from trainer.networks import Encoder, EncoderConfig
from trainer.networks.backbone import PlainBottleneck

SHARED = Path(__file__).parents[3] / "shared"
needs_weights = pytest.mark.skipif(
    not (SHARED / "weights/mobilefacenet_112x96.ckpt").exists(),
    reason="the published weights lie in ../shared, which is not here",
)
SMALL_ARCFACE = partial(ArcFace, widths=(4, 6, 8, 10), depths=(1, 1, 1, 1), outputs=12)


class Colors(nn.Module):
    """Stands in for an identity network: the mean color of a face."""

    def forward(self, x):
        return x.mean(dim=(2, 3))


@pytest.fixture
def identity():
    return Identity(Colors(), ARCFACE)


@pytest.fixture
def lpips():
    torch.manual_seed(0)
    drawn = LpipsAlex()
    for head in drawn.heads:
        head.fill_(0.1)
    return drawn


def drawn_state(network):
    """Return a state dict of the network's names and shapes, of the same number everywhere."""
    return {
        name: torch.full(value.shape, 0.25, dtype=value.dtype, device="cpu")
        for name, value in network.state_dict().items()
    }


def official_tensors(name):
    lines = (SHARED / "formats" / name).read_text().splitlines()[1:]
    return {line.split("\t")[0]: tuple(map(int, line.split("\t")[1].strip("()").replace(",", " ").split()))
            for line in lines}  # fmt: skip


def load_people(count):
    """Return two photos of each of some people, [count, 2, 3, 256, 256] in [-1, 1]."""
    people = defaultdict(list)
    with (SHARED / "faces/manifest.csv").open() as file:
        for row in csv.DictReader(file):
            people[row["identity"]].append(SHARED / "faces" / row["split"] / row["file"])
    twice = [paths[:2] for paths in people.values() if 2 <= len(paths) <= 4][:count]
    photos = [[np.asarray(Image.open(path).convert("RGB")) for path in pair] for pair in twice]
    return torch.from_numpy(np.array(photos)).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


@needs_weights
def test_mobilefacenet_tells_people_apart_in_its_crop():
    identity = Identity.load(SHARED / "weights/mobilefacenet_112x96.ckpt")
    people = load_people(12)
    with torch.no_grad():
        first, second = identity.embed(people[:, 0]), identity.embed(people[:, 1])
    cosines = first @ second.T
    same, other = cosines.diag(), cosines[~torch.eye(len(people), dtype=torch.bool)]
    assert same.mean() > 0.74
    assert other.mean() < 0.1
    assert same.min() > other.quantile(0.99)


@needs_weights
def test_mobilefacenet_still_knows_people_in_small_pictures():
    identity = Identity.load(SHARED / "weights/mobilefacenet_112x96.ckpt")
    people = load_people(6)
    small = torch.nn.functional.adaptive_avg_pool2d(people[:, 1], 64)
    with torch.no_grad():
        cosines = identity.embed(people[:, 0]) @ identity.embed(small).T
    assert cosines.diag().mean() > 0.6


@needs_weights
def test_networks_have_the_tensors_of_the_public_files():
    with torch.device("meta"):
        arcface_shapes = {name: tuple(value.shape) for name, value in ArcFace().state_dict().items()}
        moco_names = set(ResNet50().state_dict())
    assert arcface_shapes == official_tensors("ir_se50_backbone_112.txt")
    kept = torch.load(SHARED / "weights/mobilefacenet_112x96.ckpt", map_location="cpu", weights_only=True)
    assert set(MobileFaceNet().state_dict()) == set(kept["net_state_dict"])
    assert {"layer1.0.downsample.0.weight", "layer4.2.bn3.running_var", "conv1.weight"} < moco_names


def test_resnet50_and_vgg16_have_their_known_number_of_parameters():
    with torch.device("meta"):
        assert sum(value.numel() for value in ResNet50().parameters()) == 23_508_032
        convs = LpipsVgg().convs
    assert sum(value.numel() for value in convs.parameters()) == 14_714_688


def test_the_arcface_crop_is_the_official_one():
    images = torch.rand(2, 3, 256, 256) * 2 - 1
    expected = nn.functional.adaptive_avg_pool2d(images[:, :, 35:223, 32:220], (112, 112))
    torch.testing.assert_close(ARCFACE.take(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("crop", [ARCFACE, CURRICULARFACE, MOBILEFACENET])
def test_crops_of_small_pictures_show_the_same_part(crop):
    ramp = torch.linspace(-1, 1, 256).expand(1, 3, 256, 256)
    image = (ramp + ramp.mT) / 2
    small = nn.functional.adaptive_avg_pool2d(image, 64)
    assert crop.take(small).shape == crop.take(image).shape == (1, 3, crop.height, crop.width)
    torch.testing.assert_close(crop.take(small), crop.take(image), rtol=0, atol=0.02)


def test_identity_is_of_unit_length_and_gives_gradients_to_the_picture_alone():
    torch.manual_seed(0)
    identity = Identity(SMALL_ARCFACE(), ARCFACE)
    identity.train()  # must change nothing
    images = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_(True)
    embedding = identity.embed(images)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    identity.similarity(images, torch.rand(2, 3, 64, 64)).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(value.grad is None for value in identity.parameters())
    assert not identity.network.training
    torch.testing.assert_close(identity.similarity(images, images), torch.ones(2))


def test_an_identity_file_is_known_by_its_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(identities, "ArcFace", SMALL_ARCFACE)
    torch.save(drawn_state(SMALL_ARCFACE()), tmp_path / "identities.pth")
    torch.save({"epoch": 3, "net_state_dict": drawn_state(MobileFaceNet())}, tmp_path / "mobile.ckpt")
    assert Identity.load(tmp_path / "identities.pth").crop == ARCFACE
    loaded = Identity.load(tmp_path / "mobile.ckpt")
    assert loaded.crop == MOBILEFACENET
    assert (loaded.network.conv2.conv.weight == 0.25).all()


@pytest.mark.slow  # full size
@pytest.mark.parametrize("known", [0, 1])
def test_curricularface_is_read_strictly_in_its_public_format(known, tmp_path):
    with torch.device("meta"):
        network = CurricularFace()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert len(shapes) == 672
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 65_176_232  # with batch counters
    if known:
        if not (SHARED / "formats").exists():
            pytest.skip("the list of the public file's tensors lies in ../shared, which is not here")
        assert shapes == dict(official_tensors("curricularface_ir101_112.txt"))
    state = drawn_state(network.to_empty(device="cpu"))
    torch.save(state, tmp_path / "curricular.pth")
    loaded = Identity.load(tmp_path / "curricular.pth")
    assert loaded.crop == CURRICULARFACE
    assert (loaded.network.body[48].res_layer[3].weight == 0.25).all()
    for change, message in (
        ({"body.7.extra": torch.zeros(1)}, "a tensor body.7.extra that is not known"),
        ({"body.7.res_layer.4.bias": torch.zeros(3)}, r"body.7.res_layer.4.bias in .* is \(3,\), not"),
    ):
        torch.save(state | change, tmp_path / "changed.pth")
        with pytest.raises(PspError, match=message):
            Identity.load(tmp_path / "changed.pth")


def test_a_block_without_gates_adds_its_branch_unscaled():
    torch.manual_seed(0)
    block = PlainBottleneck(4, 4, 2).eval()
    x = torch.randn(2, 4, 8, 8)
    norm, first, slope, second, last = block.res_layer
    expected = last(second(slope(first(norm(x))))) + x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)


def test_files_of_other_networks_say_what_was_expected(tmp_path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(PspError, match=r"no known identity network; expected model_ir_se50.pth"):
        Identity.load(tmp_path / "other.pth")
    with pytest.raises(PspError, match=r"no tensor layer4.2.conv3.weight; expected moco_v2_800ep"):
        Moco.load(tmp_path / "other.pth")
    with pytest.raises(PspError, match=r"absent.pth .*expected model_ir_se50.pth, .*InsightFace_Pytorch"):
        Identity.load(tmp_path / "absent.pth")
    with pytest.raises(PspError, match=r"absent.pth .*facebookresearch/moco"):
        Moco.load(tmp_path / "absent.pth")
    with pytest.raises(PspError, match=r"vgg16-397923af.pth"):
        LpipsVgg.load(features=tmp_path / "absent.pth", heads=tmp_path / "absent.pth")


def test_moco_loads_its_own_file_and_a_plain_resnet50(tmp_path):
    with torch.device("meta"):
        state = drawn_state(ResNet50())
    state = {name: torch.full(value.shape, 0.01) for name, value in state.items()}
    torch.save(state | {"fc.bias": torch.zeros(1)}, tmp_path / "resnet50.pth")
    own = {f"module.encoder_q.{name}": value for name, value in state.items()}
    own["module.queue"] = torch.zeros(3)
    torch.save({"epoch": 800, "state_dict": own}, tmp_path / "moco.pth.tar")
    for name in ("resnet50.pth", "moco.pth.tar"):
        network = Moco.load(tmp_path / name).network
        assert (network.get_parameter("layer3.5.conv2.weight") == 0.01).all()


def test_moco_features_have_unit_length_and_a_gradient():
    torch.manual_seed(0)
    moco = Moco(ResNet50())
    images = torch.rand(1, 3, 48, 48, requires_grad=True)
    features = moco.embed(images)
    assert features.shape == (1, 2048)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(1))
    features.sum().backward()
    assert images.grad.abs().sum() > 0


def test_vgg_lpips_compares_the_maps_behind_the_last_relu_of_each_stage():
    torch.manual_seed(0)
    lpips = LpipsVgg()
    layers: list[nn.Module] = []  # torchvision's vgg16().features, up to its last ReLU
    for index in range(30):
        if str(index) in lpips.convs:
            layers.append(lpips.convs[str(index)])
        elif index in (4, 9, 16, 23):
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers.append(nn.ReLU())
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    maps = lpips.features(x)
    x = (x - lpips.shift) / lpips.scale
    wanted = []
    for index, layer in enumerate(layers):
        x = layer(x)
        if index in (3, 8, 15, 22, 29):
            wanted.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
    assert [map_.shape[1] for map_ in maps] == [64, 128, 256, 512, 512]
    for found, expected in zip(maps, wanted, strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(PspError, match=f"at least {VGG.smallest} pixels"):
        lpips.features(torch.zeros(1, 3, 8, 8))


def test_w_norm_is_the_mean_frobenius_norm():
    offsets = torch.zeros(2, 3, 4)
    offsets[0, 0, 0], offsets[0, 2, 1], offsets[1, 1, 3] = 3.0, 4.0, 7.0
    assert criterion.w_norm(offsets).item() == pytest.approx((5 + 7) / 2)


def test_the_total_is_the_weighted_sum(lpips, identity):
    weights = LossWeights(l2=2, lpips=0.5, identity=3, w_norm=0.25, inner_l2=4, inner_lpips=5)
    compare = Criterion(weights, lpips=lpips, identity=identity)
    images, targets = torch.rand(2, 2, 3, 64, 64)
    offsets = torch.randn(2, 4, 6)
    losses = compare(images, targets, offsets)
    total = sum(getattr(weights, name) * value for name, value in losses.items() if name != "total")
    torch.testing.assert_close(losses["total"], total)
    assert losses["l2"].item() == pytest.approx((images - targets).square().mean().item())
    assert losses["identity"].item() == pytest.approx(
        1 - identity.similarity(images, targets).mean().item(), abs=1e-6
    )
    assert list(losses) == ["l2", "inner_l2", "lpips", "inner_lpips", "identity", "w_norm", "total"]


def test_inner_losses_see_the_face_and_nothing_around_it(lpips):
    compare = Criterion(LossWeights(l2=0, lpips=0, inner_l2=1, inner_lpips=1), lpips=lpips)
    targets, offsets = torch.rand(1, 3, 64, 64), torch.zeros(1, 4, 6)
    around, inside = targets.clone(), targets.clone()
    around[:, :, :8], around[:, :, 57:], around[..., :7], around[..., 56:] = 0, 0, 0, 0
    inside[:, :, 30:34, 30:34] = 0
    assert compare(around, targets, offsets)["total"] == 0
    assert compare(inside, targets, offsets)["inner_l2"] > 0
    assert compare(inside, targets, offsets)["inner_lpips"] > 0
    assert INNER_FACE.cut(targets).shape == (1, 3, 47, 47)


def test_a_loss_of_weight_zero_is_not_computed(identity):
    losses = Criterion(LossWeights(l2=1, lpips=0), identity=identity)(
        torch.ones(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), torch.zeros(1, 4, 6)
    )
    assert list(losses) == ["l2", "total"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"lpips": 0.8}, r"lpips has the weight 0.8 but no file: .*alexnet.*--lpips-heads .*losses.lpips=0"),
        ({"lpips": 0, "identity": 0.1}, r"--identity \(model_ir_se50.pth.*--set losses.identity=0"),
        ({"lpips": 0, "moco": 0.5}, r"--moco \(moco_v2.*--set losses.moco=0"),
        ({"lpips": 0, "inner_lpips": 0.5}, r"inner_lpips has the weight 0.5 but no file"),
    ],
)
def test_a_loss_without_its_file_says_which_and_where_it_comes_from(weights, message):
    with pytest.raises(PspError, match=message):
        Criterion(LossWeights(**weights))


def encoder(channels, **sizes):
    torch.manual_seed(0)
    return Encoder.create(
        EncoderConfig(
            kind="w",
            num_styles=4,
            input_channels=channels,
            input_height=32,
            input_width=32,
            **{"widths": (4, 6, 8, 10), "depths": (1, 1, 1, 1), **sizes},
        )
    )


@pytest.mark.parametrize(("channels", "copied"), [(3, True), (1, False), (19, False)])
def test_an_encoder_starts_from_arcface_without_the_input_layer_of_other_inputs(
    tmp_path, monkeypatch, channels, copied
):
    monkeypatch.setattr(identities, "WIDTHS", (4, 6, 8, 10))
    torch.save(drawn_state(SMALL_ARCFACE()), tmp_path / "identities.pth")
    started, before = encoder(channels), encoder(channels)
    identities.start_encoder(started, tmp_path / "identities.pth")
    assert (started.body[2].res_layer[1].weight == 0.25).all()
    assert (started.body[2].res_layer[4].running_var == 0.25).all()
    assert (started.input_layer[0].weight == 0.25).all() == copied
    assert torch.equal(started.linear.weight, before.linear.weight)
    if not copied:
        assert torch.equal(started.input_layer[0].weight, before.input_layer[0].weight)


def test_a_backbone_of_other_sizes_is_refused(tmp_path, monkeypatch):
    torch.save(drawn_state(SMALL_ARCFACE()), tmp_path / "identities.pth")
    with pytest.raises(PspError, match=r"has 4 blocks, the encoder 5 .*needs widths \(64, 128, 256, 512\)"):
        identities.start_encoder(encoder(3, depths=(1, 1, 2, 1)), tmp_path / "identities.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "alexnet.pth")
    with pytest.raises(PspError, match=r"no tensor input_layer.0.weight; expected model_ir_se50.pth"):
        identities.start_encoder(encoder(3), tmp_path / "alexnet.pth")


# LPIPS of small pictures.


@pytest.mark.parametrize("side", [64, 128])
def test_lpips_sees_small_pictures_enlarged_and_never_on_the_same_grid(lpips, monkeypatch, side):
    seen = []
    features = lpips.features
    monkeypatch.setattr(lpips, "features", lambda x: seen.append(x) or features(x))
    for _ in range(8):
        perceptual.loss(lpips, torch.rand(1, 3, side, side), torch.rand(1, 3, side, side))
    shapes = [tuple(x.shape[2:]) for x in seen]
    assert shapes[::2] == shapes[1::2]  # both alike
    assert len(set(shapes)) > 2
    smallest = perceptual.LOSS_SIZE - perceptual.LOSS_STRIDE
    assert all(smallest < side <= perceptual.LOSS_SIZE for shape in shapes for side in shape)


def test_lpips_sees_large_pictures_as_they_are(lpips):
    pictures, targets = torch.rand(2, 2, 3, 136, 136)
    assert torch.equal(perceptual.loss(lpips, pictures, targets), lpips(pictures, targets).mean())
