"""What a file says of its network, in kohya's and LyCORIS's words (https://github.com/kohya-ss/sd-scripts, https://github.com/KohakuBlueleaf/LyCORIS)."""
import json

from ..options import Network

_ALGORITHMS = {"lora": "locon", "loha": "loha", "lokr": "lokr"}


def metadata_of(network: Network) -> dict[str, str]:
    """The `ss_network_*` entries. `ss_network_args` is JSON whose values are strings, as kohya's command line gives them."""
    arguments: dict[str, str] = {}
    of_lycoris = network.kind != "lora" or network.decompose or network.rank_stabilized
    if of_lycoris:
        arguments["algo"] = _ALGORITHMS[network.kind]
    if network.kind == "lokr":
        arguments["factor"] = str(network.lokr_factor or -1)
    if network.decompose:
        arguments |= {"dora_wd": "True", "wd_on_output": "True"}
    if network.rank_stabilized:
        arguments["rs_lora"] = "True"
    if network.conv_rank or network.targets == "transformer+conv":
        rank = network.conv_rank or network.rank
        alpha = network.conv_alpha or network.alpha * rank / network.rank
        arguments |= {"conv_dim": str(rank), "conv_alpha": str(alpha)}
    return {
        "ss_network_module": "lycoris.kohya" if of_lycoris else "networks.lora",
        "ss_network_dim": str(network.rank),
        "ss_network_alpha": str(network.alpha),
        "ss_network_dropout": str(network.dropout) if network.dropout else "None",
        "ss_network_args": json.dumps(arguments),
    }
