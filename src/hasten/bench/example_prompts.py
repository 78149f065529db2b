"""Questions of six kinds, so that proving and a first measurement need no file."""

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

_LETTER = """Dear Mr Amundsen, thank you for your order of 2 November. The bookcase (oak, 80 x 200 cm) left our workshop this
morning and reaches you on Thursday between nine and noon. The two additional shelves are delayed, because the varnish of the
first pair did not dry evenly; we make them anew and send them on the 24th at our expense. The bill of 640 euros is enclosed.
Please check the delivery while the driver is there, and let him write down whatever is damaged. The brackets for the wall are
in the small box; the wall needs plugs of 8 mm, which are not included. Should the bookcase not please you, we take it back
within thirty days.
With kind regards, Ingrid Solberg, Solberg Furniture, Bergen"""

_GUIDE = """The path begins behind the chapel of Saint Roch and follows the stream for two kilometres. At the old mill, a ruin
since the flood of 1957, it crosses to the left bank by a wooden bridge; in spring the bridge can be under water, and then the
road by Aubrac is the only way. From the mill it climbs through beech woods to the pass at 1,340 metres, two hours from the
chapel. The hut on the pass is open from June to September, has fourteen beds and no telephone. The shepherd there sells cheese
on Saturdays. From the pass one sees the lake, and one reaches it in forty minutes; bathing is forbidden because the town drinks
its water. The last bus back to the chapel leaves the dam at 17:40, on Sundays at 16:10."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "explaining": (
        "Why does the moon show us always the same side? Explain it to a twelve-year-old.",
        "What is the difference between a virus and a bacterium? Give an example of an illness caused by each.",
        "I have to give a speech at my sister's wedding and am afraid of it. Give me five pieces of advice.",
        "Compare living in a large city with living in a village: three advantages of each.",
    ),
    "code": (
        "Write a Python function that merges two sorted lists into one sorted list, with a docstring and three assertions.",
        "Write a JavaScript function that counts how often each word occurs in a text, and explain it line by line.",
        "This Python function should return the largest number, but fails for negative ones. Correct it.\n\n"
        "def largest(numbers):\n    best = 0\n    for number in numbers:\n        if number > best:\n            best = number\n"
        "    return best",
        "Write an SQL schema for a library with books, members and loans, and a query for the books that are overdue.",
    ),
    "summaries": (
        f"Summarise these minutes in five short points, one for each item, and keep all names and numbers.\n\n{_MINUTES}",
        f"Summarise this letter in two sentences.\n\n{_LETTER}",
        f"Write a short version of this walk for a leaflet, at most sixty words.\n\n{_GUIDE}",
        f"List every date and every amount of money in this letter, with what it stands for.\n\n{_LETTER}",
    ),
    "translations": (
        "Translate into German: The train was late because a tree had fallen onto the line during the storm last night.",
        "Translate into French: My grandmother keeps the recipe in a tin box and shows it to nobody.",
        "Translate into Spanish: If the shop is closed, please leave the parcel with the neighbours on the second floor.",
        "Translate into English: Der Schlüssel liegt unter dem dritten Blumentopf, aber die Tür klemmt manchmal.",
    ),
    "lists and data": (
        'Continue this JSON list with five more entries of the same form: [{"id": 1, "name": "ash", "evergreen": false}, '
        '{"id": 2, "name": "yew", "evergreen": true}, {"id": 3, "name": "oak", "evergreen": false},',
        "Make a table in Markdown of the eight planets with their order from the sun and their number of known moons.",
        f"How long does one walk from the chapel to the lake, and when does the last bus leave on a Sunday?\n\n{_GUIDE}",
        f"Turn the people and what they reported into a JSON object, with names as keys.\n\n{_MINUTES}",
    ),
    "sums": (
        "A shop sells pens at 3 for 2 euros and pads at 4 euros each. What do 12 pens and 5 pads cost? Show every step.",
        "A cyclist rides 18 km in 45 minutes and then 30 km in 75 minutes. What is the mean speed of all of it? Show every step.",
        "Anna is twice as old as Ben was when Anna was as old as Ben is now. Anna is 24. How old is Ben? Show every step.",
        "A tank holds 240 litres. One tap fills it in 8 minutes, another in 12. How long do both take together? Show every step.",
    ),
}

EXAMPLE_PROMPTS = tuple(prompts[0] for prompts in EXAMPLES.values())
