#!/usr/bin/env bash
# torch 2.14.1 (Python 3.11, CPU). Three layers, whose weights are made by an operation each (`theta * 2`), and a chain of
# matrix products. The order in which backward runs the nodes, with the weights' nodes as w0 to w2 and the products as m0 to m2:
#   weights made before the chain        m2 m1 m0 w2 w1 w0
#   each weight made just before its use m2 w2 m1 w1 m0 w0
# The engine does not run a node as soon as its gradients are complete: of the nodes that are ready it takes the one that
# was made last. So weights that a hypernetwork, a bank of templates or an ensemble makes all at once before the network
# runs hold the gradients of all layers until the chain's backward is over, as many bytes as all weights. Made layer by layer,
# the same operations hold those of one layer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.14.1
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch


def order(early):
    """Return the names of backward's nodes as they run."""
    ran = []
    thetas = [torch.ones(4, 4, requires_grad=True) for _ in range(3)]

    def note(tensor, name):
        tensor.grad_fn.register_prehook(lambda _: ran.append(name))
        return tensor

    make = [lambda i=i: note(thetas[i] * 2, f"w{i}") for i in range(3)]
    made = [each() for each in make] if early else None
    x = torch.ones(2, 4)
    for i in range(3):
        x = note(x @ (made[i] if early else make[i]()), f"m{i}")
    x.sum().backward()
    return " ".join(ran)


print(torch.__version__)
print("before the chain:", order(early=True))
print("layer by layer:  ", order(early=False))
assert order(early=True) == "m2 m1 m0 w2 w1 w0"
assert order(early=False) == "m2 w2 m1 w1 m0 w0"
PYTHON
