"""Prompts on which guessing ahead should fail."""

from __future__ import annotations

CREATIVE = (
    "Write a surreal poem without rhyme about a lighthouse that dreams of being a cactus. Never use the same noun twice.",
    "Invent twelve words that do not exist in any language and define each in one odd sentence.",
    "Tell the story of a clock that runs on gossip. Change the narrator in every sentence.",
    "Describe a colour nobody has seen to somebody who has never seen at all, in the voice of a tired customs officer.",
    "Write the opening of a detective novel in which the detective is fog and the victim is a Tuesday.",
    "List the contents of a giant's pocket, each thing more unlikely than the last, with its smell.",
    "Write a dialogue between two strangers who each know only half of the words of the other.",
    "Make up a myth of how the comma was born, told by somebody who hates punctuation.",
)

UNKNOWN_LANGUAGE = (
    "გთხოვთ, მომიყევით მოკლე ამბავი მწყემსზე, რომელმაც მთაში თოვლის ქვეშ ძველი ზარი იპოვა.",
    "Segðu mér sögu af sjómanni sem týndi áttavitanum sínum og rataði heim eftir hljóði fuglanna.",
    "እባክህ ስለ አንድ ልጅ እና ስለ ዝናብ አጭር ታሪክ ንገረኝ።",
    "Mesélj egy rövid történetet egy órásmesterről, aki csak éjszaka hallja az órái ketyegését.",
    "Խնդրում եմ, պատմիր մի կարճ պատմություն մի ջրաղացպանի և նրա խոսող գետի մասին։",
    "Kerro lyhyt tarina majakanvartijasta, joka kirjoittaa kirjeitä mereen ja saa kerran vastauksen.",
    "ຊ່ວຍເລົ່ານິທານສັ້ນໆກ່ຽວກັບຊາວນາ ແລະ ຄວາຍຂອງລາວໃຫ້ຂ້ອຍຟັງແດ່.",
    "Inis scéal gearr dom faoi fhear a cheannaigh scáth agus a chaill é ar an aonach.",
)

_TOPICS = (
    "tides", "yeast", "inflation", "the Doppler effect", "sonnets", "glaciers", "public-key encryption", "vaccines", "jazz harmony",
    "plate tectonics", "the Silk Road", "compilers", "photosynthesis", "chess openings", "rainbows", "the Roman calendar",
)  # fmt: skip
_TASKS = (
    "sharpen a kitchen knife", "reset a forgotten router password", "prune an apple tree", "write a will", "descale a kettle",
    "train a puppy to wait", "read a topographic map", "merge two git branches", "bake rye bread", "change a bicycle tube",
    "learn the Cyrillic alphabet", "remove a wine stain", "tune a guitar", "calculate a standard deviation", "plan a vegetable bed",
    "photograph the night sky",
)  # fmt: skip
_ANIMALS = (
    "octopuses", "swifts", "hedgehogs", "termites", "narwhals", "axolotls", "vultures", "sea horses", "camels", "fireflies",
    "ravens", "salmon", "bats", "sloths", "cuckoos", "mantis shrimps",
)  # fmt: skip

UNRELATED = (
    *(f"Explain {topic} in two sentences." for topic in _TOPICS),
    *(f"How do I {task}?" for task in _TASKS),
    *(f"Name three surprising facts about {animal}." for animal in _ANIMALS),
    "What is the capital of Mongolia, and what is it known for?",
    "Write a regular expression that matches a date such as 2026-11-21 and explain its parts.",
    "A train leaves at 14:20 and arrives at 17:05. How long does it take?",
    "Give me a recipe for lentil soup for two.",
    "Translate into French: The keys are under the blue flower pot.",
    "Explain what a mutex is in two sentences.",
    "Name five birds that cannot fly.",
    "Write a short thank-you note to a neighbour who watered the plants.",
    "Why is the sea salty?",
    "What is the derivative of x squared times the sine of x?",
    "Suggest a name for a small bakery on a hill.",
    "Write a haiku about an empty railway station.",
    "What should I check before I buy a used bicycle?",
    "Summarise the plot of Hamlet in three sentences.",
    "Write an SQL query that counts the orders of each customer in 2025.",
    "How do I tie a bowline?",
    "What is the difference between weather and climate?",
    "Write a shell command that finds the ten largest files below the current folder.",
    "Who painted The Night Watch, and when?",
    "Explain compound interest to a teenager.",
    "Give three arguments against meetings on Monday morning.",
    "Convert 68 degrees Fahrenheit to Celsius and show the steps.",
    "Write a product description of a wooden spoon.",
    "What does the word 'serendipity' mean, and where does it come from?",
    "Plan a day in Lisbon for somebody who dislikes museums.",
    "Write a JavaScript function that debounces another function.",
    "Why do cats purr?",
    "List the planets in order of their size.",
    "Draft an e-mail that moves an appointment from Tuesday to Thursday.",
    "How does a heat pump work?",
    "What is the sum of the first hundred odd numbers?",
    "Describe the taste of a pomegranate.",
)
