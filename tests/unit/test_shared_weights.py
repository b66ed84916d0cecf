"""Weights through memory: what one end writes the other reads, also when there is more of it later."""

import os

import torch

from models.shared_weights import SharedWeights


def weights(seed: int, *, rows: int) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        ("matrix", torch.randn(rows, 3, generator=generator)),
        ("half", torch.randn(5, generator=generator).bfloat16()),
        ("transposed", torch.randn(4, 2, generator=generator).T),
        ("one", torch.tensor(3, dtype=torch.int64)),
    ]


def test_the_other_end_reads_what_was_written():
    writer = SharedWeights()
    reader = SharedWeights(os.dup(writer.descriptor))
    for seed, rows in ((0, 7), (1, 7), (2, 5000)):  # the last is more than the memory had room for
        written = weights(seed, rows=rows)
        places = writer.write(written)
        read = dict(reader.read(places))
        assert list(read) == [name for name, _ in written]
        for name, tensor in written:
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)
    for end in (writer, reader):
        end.close()


def test_it_is_the_same_memory_and_not_a_copy():
    writer = SharedWeights()
    reader = SharedWeights(os.dup(writer.descriptor))
    places = writer.write([("a", torch.zeros(4))])
    ((_, seen),) = reader.read(places)
    writer.write([("a", torch.ones(4))])
    assert seen.tolist() == [1, 1, 1, 1]
    for end in (writer, reader):
        end.close()
