"""Ratings by latent factors: what a user is like, what an item is like, and how far they agree.

Koren, Bell, Volinsky, "Matrix Factorization Techniques for Recommender Systems", Computer 2009, equation 4:
r = mu + b_item + b_user + q_item . p_user. With `personal = "user*"` a strategy keeps b_user and p_user at the user's.
"""

import torch
from torch import Tensor, nn

from fedsim.errors import ModelError
from fedsim.models._fit import at_least_one


def ratings(
    shape: tuple[int, ...], outputs: int, task: str, vocabulary: int, *, users: int, width: int = 8
) -> nn.Module:
    """Factors of users and items, for rows of two tokens.

    Args:
        shape: of one row, (2,): a user's token, from 0 on, and an item's, from `users` on.
        outputs: 1.
        task: regression.
        vocabulary: how many tokens there are.
        users: how many of them are users.
        width: factors of each.

    Raises:
        ModelError: rows or targets are others, or a size is impossible.
    """
    if task != "regression" or shape != (2,) or outputs != 1:
        raise ModelError(
            f"model 'ratings' takes rows [2] of a user and an item and gives one number, not {list(shape)} for {task}"
        )
    at_least_one("ratings", users=users, width=width)
    if users >= vocabulary:
        raise ModelError(f"model 'ratings': users = {users:,} leaves no item among {vocabulary:,} tokens; lower it")
    return Ratings(users, vocabulary - users, width)


class Ratings(nn.Module):
    """Tokens [B, 2] to ratings [B, 1]."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.user, self.user_bias = nn.Embedding(users, width), nn.Embedding(users, 1)
        self.item, self.item_bias = nn.Embedding(items, width), nn.Embedding(items, 1)
        self.mean = nn.Parameter(torch.zeros(1))
        for table, std in ((self.user, 0.1), (self.item, 0.1), (self.user_bias, 0.0), (self.item_bias, 0.0)):
            nn.init.normal_(table.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """Ratings [B, 1]."""
        user, item = x[:, 0], x[:, 1] - self.user.num_embeddings
        agreement = (self.user(user) * self.item(item)).sum(1, keepdim=True)
        rating: Tensor = self.mean + self.user_bias(user) + self.item_bias(item) + agreement
        return rating
