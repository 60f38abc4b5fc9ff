"""The StyleGAN2 discriminator."""

import torch

from trainer.networks.discriminator import Blur, Discriminator, DiscriminatorConfig, Halving, append_stddev

TINY = DiscriminatorConfig(channels=(8, 6, 4))  # 16 pixels


def test_names_and_shapes_are_those_of_the_public_code():
    shapes = {name: tuple(tensor.shape) for name, tensor in Discriminator(TINY).state_dict().items()}
    assert shapes == {
        "convs.0.0.weight": (4, 3, 1, 1),
        "convs.0.1.bias": (4,),
        "convs.1.conv1.0.weight": (4, 4, 3, 3),
        "convs.1.conv1.1.bias": (4,),
        "convs.1.conv2.0.kernel": (4, 4),
        "convs.1.conv2.1.weight": (6, 4, 3, 3),
        "convs.1.conv2.2.bias": (6,),
        "convs.1.skip.0.kernel": (4, 4),
        "convs.1.skip.1.weight": (6, 4, 1, 1),
        "convs.2.conv1.0.weight": (6, 6, 3, 3),
        "convs.2.conv1.1.bias": (6,),
        "convs.2.conv2.0.kernel": (4, 4),
        "convs.2.conv2.1.weight": (8, 6, 3, 3),
        "convs.2.conv2.2.bias": (8,),
        "convs.2.skip.0.kernel": (4, 4),
        "convs.2.skip.1.weight": (8, 6, 1, 1),
        "final_conv.0.weight": (8, 9, 3, 3),
        "final_conv.1.bias": (8,),
        "final_linear.0.weight": (8, 128),
        "final_linear.0.bias": (8,),
        "final_linear.1.weight": (1, 8),
        "final_linear.1.bias": (1,),
    }


def test_two_constant_pictures_can_be_told_apart():
    torch.manual_seed(0)
    network = Discriminator(TINY)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    pictures = torch.tensor([0.5, -0.5]).repeat(4)[:, None, None, None].expand(-1, 3, 16, 16)
    wanted = torch.tensor([1.0, 0.0]).repeat(4)
    for _ in range(30):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(pictures), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = network(pictures)
    assert scores[wanted == 1].min() > 1
    assert scores[wanted == 0].max() < -1


def test_the_deviation_is_that_of_the_pictures_of_a_group():
    torch.manual_seed(0)
    x = torch.randn(8, 5, 4, 4)
    x[1::2] = x[1]  # pictures 1, 3, 5, 7 are one group, and alike
    result = append_stddev(x, group=4)
    assert result.shape == (8, 6, 4, 4)
    torch.testing.assert_close(result[:, :5], x)
    expected = x[0::2].std(dim=0, correction=0).mean()
    torch.testing.assert_close(result[0::2, 5], expected.expand(4, 4, 4), rtol=1e-5, atol=0)
    torch.testing.assert_close(result[1::2, 5], torch.full((4, 4, 4), 1e-4))


def test_halving_is_every_second_value_of_the_filter():
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(Halving(padding=1)(x), Blur(padding=1)(x)[:, :, ::2, ::2])


def test_mixed_precision_gives_the_scores_within_its_rounding_and_leaves_them_in_full():
    torch.manual_seed(0)
    network, pictures = Discriminator(TINY), torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        scores = network(pictures)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, network(pictures), rtol=0.05, atol=0.05)
