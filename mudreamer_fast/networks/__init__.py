"""The networks: parameters and shapes, with the maths left to the operations they are handed."""

from mudreamer_fast.networks.actor import ActionHead
from mudreamer_fast.networks.decoder import Decoder, VectorDecoder
from mudreamer_fast.networks.encoder import Encoder
from mudreamer_fast.networks.heads import ContinueHead, ScalarHead
from mudreamer_fast.networks.rssm import Rssm

__all__ = [
    "ActionHead",
    "ContinueHead",
    "Decoder",
    "Encoder",
    "Rssm",
    "ScalarHead",
    "VectorDecoder",
]
