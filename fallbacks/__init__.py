"""What to answer when the upstream does not: tiers, asked in order. Usable without the gateway."""

from fallbacks.answer import Answer, Question, Source, Tier
from fallbacks.chain import Fallback
from fallbacks.last_good import LastGood
from fallbacks.tiers import Alternate, Static, handler

__all__ = ["Alternate", "Answer", "Fallback", "LastGood", "Question", "Source", "Static", "Tier", "handler"]
