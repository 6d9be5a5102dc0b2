"""The paper's published numbers, to be shown beside one's own (arXiv 2504.04400)."""

# Table 2: {dataset: {method: (recall@5, recall@10, ndcg@5, ndcg@10)}}.
TABLE_2 = {
    "Musical_Instruments": {
        "SASRec": (0.0333, 0.0523, 0.0213, 0.0274),
        "TIGER": (0.0370, 0.0564, 0.0244, 0.0306),
        "TIGER++": (0.0380, 0.0588, 0.0249, 0.0316),
        "MTGRec": (0.0413, 0.0635, 0.0275, 0.0346),
    },
    "Industrial_and_Scientific": {
        "SASRec": (0.0259, 0.0412, 0.0150, 0.0199),
        "TIGER": (0.0264, 0.0422, 0.0175, 0.0226),
        "TIGER++": (0.0289, 0.0450, 0.0190, 0.0241),
        "MTGRec": (0.0322, 0.0506, 0.0212, 0.0271),
    },
    "Video_Games": {
        "SASRec": (0.0535, 0.0847, 0.0331, 0.0438),
        "TIGER": (0.0559, 0.0868, 0.0366, 0.0467),
        "TIGER++": (0.0580, 0.0914, 0.0377, 0.0485),
        "MTGRec": (0.0621, 0.0956, 0.0410, 0.0517),
    },
}
TABLE_2_METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")

# Table 5: {dataset: {gap in epochs: (share of items whose first token differs, whose any token differs)}}.
TABLE_5 = {
    "Musical_Instruments": {
        **{1: (0.0039, 0.1358), 5: (0.0044, 0.2126), 10: (0.0051, 0.2975)},
        **{20: (0.0075, 0.4409), 30: (0.0087, 0.5494)},
    },
    "Industrial_and_Scientific": {
        **{1: (0.0027, 0.114), 5: (0.0058, 0.2254), 10: (0.0051, 0.3068)},
        **{20: (0.0071, 0.4733), 30: (0.0085, 0.5829)},
    },
    "Video_Games": {
        **{1: (0.0036, 0.0936), 5: (0.0058, 0.2122), 10: (0.0057, 0.3043)},
        **{20: (0.0079, 0.4742), 30: (0.0114, 0.5995)},
    },
}
