"""Counted FLOPs against what PyTorch counts when the model runs."""

from torch.utils.flop_counter import FlopCounterMode

from models.policy import collate, collate_packed, load_policy
from tests.flops import Work, attention_share, language_flops, peak_of, training_flops, vision_flops
from tests.tiny_models import picture, trajectory_with_crops


def matrix_flops(run):
    """FLOPs of all matrix products; attention's own are another matter (causal or not, kernel by kernel)."""
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for name, count in counts.items() if "attention" not in str(name))


def test_the_language_model(untied_model):
    policy = load_policy(untied_model)
    one = policy.encoder.encode(trajectory_with_crops(policy.encoder, 2))
    batch = collate([one], policy)
    padded = batch.ids.shape[1]
    work = Work(tokens=padded, pairs=0, predicted=one.num_sampled)
    assert matrix_flops(lambda: policy(batch)) == language_flops(policy.model.config, work)
    # Backward: the gradient of every weight, and of every input but the embeddings of the first layer's.
    counted = matrix_flops(lambda: policy(batch).sum().backward())
    assert 0.97 < counted / training_flops(policy.model.config, work) <= 1


def test_the_tower(untied_model):
    policy = load_policy(untied_model)
    shown = picture(140, 84)  # 10 x 6 patches, whose windows have 4 x 4 at most
    counted = matrix_flops(lambda: policy.features([shown]))
    # One block attends to all 60 patches, the other within windows; width 64, two products, two operations.
    pairs = 60**2 + sum((rows * columns) ** 2 for rows in (4, 2) for columns in (4, 4, 2))
    assert vision_flops(policy.model.config, [(6, 10)]) - 4 * 64 * pairs == counted


def test_a_prompt_that_is_shared_counts_once(untied_model):
    policy = load_policy(untied_model)
    one = policy.encoder.encode(trajectory_with_crops(policy.encoder, 1))
    length, own = len(one), len(one) - int(one.sampled.argmax()) + 1  # the last token of the prompt predicts
    work = Work.of(collate_packed([one, one], policy))
    assert work.tokens == length + own
    assert work.pairs == length * (length + 1) // 2 + own * (length - own) + own * (own + 1) // 2
    assert work.predicted == 2 * one.num_sampled
    assert work + work == Work(2 * work.tokens, 2 * work.pairs, 2 * work.predicted)
    assert 0 < attention_share(policy.model.config, work) < 0.5


def test_padding_counts_for_nothing(untied_model):
    policy = load_policy(untied_model)
    both = [policy.encoder.encode(trajectory_with_crops(policy.encoder, crops)) for crops in (0, 3)]
    lengths = [len(one) for one in both]
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    predicted = sum(one.num_sampled for one in both)
    assert Work.of(collate(both, policy)) == Work(sum(lengths), pairs, predicted)


def test_peaks_are_found_by_the_names_that_torch_gives():
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA A10") == 125e12
    assert peak_of("NVIDIA H100 80GB HBM3") == 989.5e12
    assert peak_of("NVIDIA H100 PCIe") == 756.5e12
    assert peak_of("NVIDIA H20") == 148e12
    assert peak_of("NVIDIA L4") == 121e12
    assert peak_of("NVIDIA L40S") == 362e12
    assert peak_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert peak_of("CPU") is None
