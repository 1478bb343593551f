"""Novelty guidance side by side with its peers, each written afresh from its paper."""
