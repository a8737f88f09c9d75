"""Rankers that write their answer, learned by policy gradient: rewards, and GRPO and Rank-GRPO over TRL's trainer."""
