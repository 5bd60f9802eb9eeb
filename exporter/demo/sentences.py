"""Sentences of mixed length on a few subjects, so that nearest neighbours mean something."""

from __future__ import annotations

from typing import Final

__all__ = ["SENTENCES"]

SENTENCES: Final[tuple[str, ...]] = (
    "Hello.",
    "The bakery on the corner sells warm bread every morning.",
    "Fresh loaves come out of the oven at six, and the whole street smells of them until noon.",
    "How do I reset my password?",
    "I forgot my login and cannot get into my account any more; which form do I have to fill in?",
    "The heart pumps blood through the arteries.",
    "Doctors recommend thirty minutes of brisk walking a day, because it lowers the blood pressure and strengthens the "
    "muscle of the heart, even in people who have never done any sport in their lives.",
    "It rains.",
    "Heavy showers are expected over the western hills tonight, with gusts of up to ninety kilometres an hour.",
    "The orchestra tuned its instruments before the concert began.",
    "She plays the violin.",
    "A quartet of strings rehearsed the slow movement again and again, until every note of it floated.",
    "Interest rates were raised by a quarter of a point.",
    "The central bank tightened its policy once more, citing stubborn inflation, a strong labour market and the fear "
    "that wages and prices might begin to chase each other.",
    "My train is late.",
    "Due to a signal failure, all services on the northern line are delayed by up to forty minutes.",
    "The telescope captured light that left its galaxy before the Earth was formed.",
    "Astronomers found a planet.",
    "Please water the tomatoes while I am away.",
    "Basil, tomatoes and peppers need at least six hours of sun, a rich soil and water in the evening.",
    "The goalkeeper saved the penalty in the last minute of extra time.",
    "They won the cup.",
    "Where is the nearest pharmacy?",
    "Yes.",
)
