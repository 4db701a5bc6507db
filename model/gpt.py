"""A decoder-only Transformer (GPT).

Shape suffixes, everywhere: B batch, T time (positions), D width of the residual stream, F width of the FFN, H heads,
K width of a head, V vocabulary, N any number of tokens.
"""

from torch import Tensor, nn

from model.attention import rotary_table
from model.block import NORMS, Block
from model.config import ModelConfig
from model.heads import HEADS
from model.init import init_weights
from model.layers import linear
from model.loss import head_loss, token_losses


class GPT(nn.Module):
    """tokens_BT -> logits_BTV. The embedding is also the output layer (tied; Press & Wolf, 2016)."""

    rotary_2TK: Tensor

    def __init__(self, config: ModelConfig, n_vocab: int, seed: int = 0):
        super().__init__()
        self.config, self.n_vocab = config, n_vocab
        self.embedding = nn.Embedding(n_vocab, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # without any norm the scores would have no scale to start from
        self.norm = NORMS["rms" if config.norm == "none" else config.norm](config.d_model)
        self.head = HEADS[config.head](n_vocab)
        rotary_2TK = rotary_table(config.context, config.d_model // config.n_head)
        self.register_buffer("rotary_2TK", rotary_2TK, persistent=False)
        init_weights(self, config, seed)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the logits of the next token at every position, BTV; their softmax is the model's distribution."""
        return self.head(self.scores(tokens_BT))

    def scores(self, tokens_BT: Tensor) -> Tensor:
        """Return what the head reads, z_BTV."""
        return linear(self.states(tokens_BT), self.embedding.weight)

    def states(self, tokens_BT: Tensor) -> Tensor:
        """Return the last states, normed, BTD; their products with the embedding are the scores.

        Raises:
            ValueError: more positions than `config.context`.
        """
        return self.run_blocks(self.embed(tokens_BT))

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Return what the first block reads, x_BTD.

        Raises:
            ValueError: more positions than `config.context`.
        """
        if (T := tokens_BT.shape[1]) > self.config.context:
            raise ValueError(f"{T} tokens exceed the context of {self.config.context}")
        return self.embedding(tokens_BT)

    def run_blocks(self, x_BTD: Tensor) -> Tensor:
        """Return the last states of embedded tokens, normed, BTD."""
        for block in self.blocks:
            x_BTD = block(x_BTD, self.rotary_2TK[:, : x_BTD.shape[1]])
        return self.norm(x_BTD)

    def token_losses(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the cross-entropy of each target, nats, BT. All heads are scored on it."""
        x_ND = self.states(tokens_BT).flatten(0, 1)
        return token_losses(self.head, x_ND, self.embedding.weight, targets_BT.flatten()).view_as(targets_BT)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean of `token_losses`, nats per token."""
        return self.token_losses(tokens_BT, targets_BT).mean()

    def train_loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return what the head is trained on, nats per token: `loss`, but for the sigmoid head's own."""
        return self.embedded_loss(self.embed(tokens_BT), targets_BT)

    def embedded_loss(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Return `train_loss` of embedded tokens: all of it that is compiled, where a run asks for that."""
        x_ND = self.run_blocks(x_BTD).flatten(0, 1)
        return head_loss(self.head, x_ND, self.embedding.weight, targets_BT.flatten())
