"""What several node files share."""

from comfy_api.latest import io

CATEGORY = "uncommon/novelty"
NoveltyMemoryType = io.Custom("UNCOMMON_NOVELTY_MEMORY")
