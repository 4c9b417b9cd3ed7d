"""The private functions of torch still do what npas uses them for."""

import contextlib

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from npas.sharing import torch_private as private


class Probe(torch.autograd.Function):
    """Note what can be seen from within a backward pass."""

    @staticmethod
    def forward(ctx, x, y, seen):
        ctx.seen = seen
        return x + y

    @staticmethod
    def backward(ctx, gradient):
        will = [private.will_execute(node) for node, _ in ctx.next_functions[:2]]
        ctx.seen.append((private.backward_pass(), will))
        return gradient, gradient, None


def test_a_backward_pass_has_a_number_and_knows_which_nodes_it_executes():
    x, y = (torch.ones(2, requires_grad=True) * 1 for _ in range(2))
    seen = []
    assert private.backward_pass() == -1
    Probe.apply(x, y, seen).sum().backward(inputs=[x], retain_graph=True)
    Probe.apply(x, y, seen).sum().backward(inputs=[y])
    (first, will), (second, others) = seen
    assert 0 <= first != second and private.backward_pass() == -1
    assert will == [True, False] and others == [False, True]


def test_a_storage_tells_whether_a_tensor_uses_it():
    tensor = torch.ones(3)
    storage = tensor.untyped_storage()
    assert private.is_shared_storage(storage)
    del tensor
    assert not private.is_shared_storage(storage)


def test_hooks_on_saved_tensors_are_seen():
    assert not private.has_saved_tensors_hooks()
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        assert private.has_saved_tensors_hooks()


def test_traces_are_seen():
    seen = []

    def note(x):
        seen.append(private.is_traced())
        return x * 2

    x = torch.ones(2)
    note(x)
    torch.func.vmap(note)(x)
    torch.fx.experimental.proxy_tensor.make_fx(note)(x)
    with torch._subclasses.FakeTensorMode():
        note(torch.ones(2))
    with torch.autograd.forward_ad.dual_level():
        note(x)
    assert seen == [False, True, True, True, True]


def test_a_selective_checkpoint_does_not_see_what_is_hidden():
    saved = []

    def policy(ctx, operation, *args, **kwargs):
        saved.append(operation)
        return CheckpointPolicy.MUST_SAVE

    forward, _ = create_selective_checkpoint_contexts(policy)
    with forward:
        torch.ones(2).add(1)
        count = len(saved)
        with private.hidden_from_checkpoints():
            torch.ones(2).add(1)
    assert count == len(saved) > 0
    assert isinstance(private.hidden_from_checkpoints(), contextlib.nullcontext)


def test_calls_that_run_are_found_and_told_from_those_that_have_ended():
    class Note(torch.nn.Identity):
        def forward(self, x):
            found = private.outermost_call({part, outer})
            assert found is not None and private.is_executing(found[0])
            calls.append(found)
            return x

    calls = []
    part = torch.nn.Sequential(Note())
    outer = torch.nn.Sequential(torch.nn.Identity(), part)
    torch.nn.Sequential(outer)(torch.ones(2))
    part(torch.ones(2))
    (first, of_outer), (second, of_part) = calls
    assert (of_outer, of_part) == (outer, part)
    assert not private.is_executing(first) and not private.is_executing(second)
    assert private.outermost_call({part, outer}) is None
