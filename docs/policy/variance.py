"""The variance of PG-Rank's gradient with and without its options: `python docs/policy/variance.py`.

200 lists of 8 items with random grades 0 to 3 and scores that know something of them; 400 estimates of each.
"""

from __future__ import annotations

import torch

from rerank.losses.policy import pg_rank

LISTS, ITEMS, ESTIMATES = 200, 8, 400
OPTIONS: dict[str, dict[str, bool | str]] = {
    "neither": {"baseline": "none"},
    "reward-to-go": {"baseline": "none", "reward_to_go": True},
    "leave-one-out": {},
    "both": {"reward_to_go": True},
}


def main() -> None:
    made = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (LISTS, 1, ITEMS), generator=made).float().expand(LISTS, ESTIMATES, ITEMS)
    scores = (0.3 * labels[:, :1] + torch.randn(LISTS, 1, ITEMS, generator=made)).expand_as(labels)
    print("rankings drawn  " + "".join(f"{name:>15}" for name in OPTIONS))
    for samples in (4, 16, 64):
        found = []
        for options in OPTIONS.values():
            leaf = scores.clone().requires_grad_()
            draws = torch.Generator().manual_seed(1)
            pg_rank(leaf, labels, samples=samples, generator=draws, reduction="sum", **options).backward()  # type: ignore[arg-type]
            assert leaf.grad is not None
            found.append(leaf.grad.var(1).sum(-1).mean().item())
        print(f"{samples:14d}  " + "".join(f"{value:15.5f}" for value in found))


if __name__ == "__main__":
    main()
