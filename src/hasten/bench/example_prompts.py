"""A few prompts of different kinds for proofs and warm-up, so that neither needs a file."""

from __future__ import annotations

_MINUTES = """Minutes of the harbour committee, 4 March. Present: Ada Lind, Jonas Berg, Mei Tanaka, Samuel Okoro, Petra Novak.
1. Ada Lind reported that the north pier was inspected in February. Two of the twelve piles show rot below the water line and have
to be replaced before the summer season. The two offers are 18,400 and 21,900. Jonas Berg asked for a third offer by 20 March.
2. Mei Tanaka presented the figures of the guest harbour. 1,312 boats stayed a night or more, 9 percent more than the year before.
Income from berths was 65,600. The new pump station was used 402 times. She proposed to keep the fees as they are for another year.
3. Samuel Okoro described the complaints about noise from the fuel dock after ten in the evening. The committee decided that the
fuel dock closes at nine from Sunday to Thursday, and at ten on Friday and Saturday. A sign will be put up, the web page changed.
4. Petra Novak asked for volunteers for the cleaning day on 26 April. Twelve are needed. Food and gloves are provided.
5. The next meeting is on 8 April at seven in the harbour office. Jonas Berg keeps the minutes."""

EXAMPLE_PROMPTS = (
    "Why does the moon show us always the same side? Explain it to a twelve-year-old.",
    "Write a Python function that merges two sorted lists into one sorted list, with a docstring and three assertions.",
    f"Summarise these minutes in five short points, one for each item, and keep all names and numbers.\n\n{_MINUTES}",
    "Translate into German: The train was late because a tree had fallen onto the line during the storm last night.",
    'Continue this JSON list with five more entries of the same form: [{"id": 1, "name": "ash", "evergreen": false}, '
    '{"id": 2, "name": "yew", "evergreen": true}, {"id": 3, "name": "oak", "evergreen": false},',
    "A shop sells pens at 3 for 2 euros and pads at 4 euros each. What do 12 pens and 5 pads cost? Show every step.",
)
