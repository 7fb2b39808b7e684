"""Questions about chapters, for tests."""


def question(number, of, **columns):
    return {
        "question": f"What is said of {number}?",
        "chapter": f"Chapter {of}. " + f"star {of} shines on the {of} pole. " * 8,
        "key_points": [f"point {number}", "it shines"],
        "path_to_chapter": f"book/{of}",
        "domain": ["physics", "biology"][of % 2],
        "difficulty": ["easy", "hard", "medium"][number % 3],
        "closed_book": number % 2 == 0,
        "answer_in_chapter": True,
        "misleading_question": number % 5 == 0,
        **columns,
    }
