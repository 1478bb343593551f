"""What several node files share."""

from comfy_api.latest import io

CATEGORY = "uncommon/novelty"
MINORITY_CATEGORY = "uncommon/minority"
NoveltyMemoryType = io.Custom("UNCOMMON_NOVELTY_MEMORY")
ScoredImagesType = io.Custom("UNCOMMON_SCORED_IMAGES")
MinorityClassifierType = io.Custom("UNCOMMON_MINORITY_CLASSIFIER")
