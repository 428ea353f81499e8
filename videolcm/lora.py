"""LoRA (Hu et al., arXiv 2106.09685): a network whose own weights stay while a product of two thin matrices beside each layer learns.

In: a network and a rank. Out: the same network with peft's adapters in it; later plain weights with what was learned added to them, so whoever loads
them needs neither adapters nor peft. It knows nothing about training, models or files.
"""

import copy

from torch import nn

LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)


def with_adapters(net, rank):
    """`net`, changed in place: every linear layer and convolution gets an adapter of this rank, which alone learns. At first it does nothing."""
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, layer in net.named_modules() if isinstance(layer, LAYERS)]
    return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), net)


def merged(net):
    """A copy of `net` in which every adapter is added to the weights of its layer: modules and names are those of before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    net = copy.deepcopy(net)
    for name, layer in list(net.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            net.set_submodule(name, layer.get_base_layer())
    return net
