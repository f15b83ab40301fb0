/* ReLU, dropout, both, and their gradients; included once for each TYPE, with ENTRY, LOAD and STORE.
 *
 * Values are reckoned in MATH, in which a product of two numbers of the type is exact or is rounded once. */

/* Entries of tiles [begin, end) with a bit for each; see rmm_gnn/autograd/bit_masks.py for where it lies. */
CLONES static int OF_TYPE(relu_tiles)(void *given, int thread, int64_t begin, int64_t end) {
    (void)thread;
    const mask_task *task = given;
    const ENTRY *restrict source = task->source;
    ENTRY *restrict target = task->target;
    const MATH slope = (MATH)task->slope, factor = (MATH)task->factor;
    const uint32_t threshold = task->threshold;
    const int leaky = task->kind == LEAKY_RELU, drops = task->kind == RELU_DROPOUT;
    const stream_key lanes = key_of(task->seed, STREAM_DROPOUT_LANES);
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t first = tile * TILE, size = least(TILE, task->count - first), width = (size + 7) / 8;
        const uint32_t tile_word = hash_index((uint32_t)tile, key_of(task->seed, STREAM_DROPOUT));
        uint8_t *restrict bits = task->bits + first / 8;
        memset(bits, 0, (size_t)width);
        for (int plane = 0; plane < 8; plane++) {
            const int64_t start = plane * width, run = least(width, size - start);
            const ENTRY *restrict in = source + first + start;
            ENTRY *restrict out = target + first + start;
            if (drops)
                for (int64_t j = 0; j < run; j++) {
                    MATH value = LOAD(in[j]);
                    int kept = mix32(tile_word ^ hash_index((uint32_t)(start + j), lanes)) >= threshold;
                    int positive = !(value <= 0);
                    out[j] = STORE((value < 0 ? 0 : value) * (kept ? factor : 0));
                    bits[j] |= (uint8_t)((positive & kept) << plane);
                }
            else if (leaky)
                for (int64_t j = 0; j < run; j++) {
                    MATH value = LOAD(in[j]);
                    out[j] = STORE(value > 0 ? value : value * slope);
                    bits[j] |= (uint8_t)((value > 0) << plane);
                }
            else
                for (int64_t j = 0; j < run; j++) {
                    MATH value = LOAD(in[j]);
                    out[j] = STORE(value < 0 ? 0 : value); /* -0.0 as it is, and nan */
                    bits[j] |= (uint8_t)(!(value <= 0) << plane);
                }
        }
    }
    return 0;
}

/* The gradient where the bit is set, times slope elsewhere, 0 where that is 0; then times factor. */
CLONES static int OF_TYPE(masked_tiles)(void *given, int thread, int64_t begin, int64_t end) {
    (void)thread;
    const mask_task *task = given;
    const ENTRY *restrict source = task->source;
    ENTRY *restrict target = task->target;
    const MATH slope = (MATH)task->slope, factor = (MATH)task->factor;
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t first = tile * TILE, size = least(TILE, task->count - first), width = (size + 7) / 8;
        const uint8_t *restrict bits = task->bits + first / 8;
        for (int plane = 0; plane < 8; plane++) {
            const int64_t start = plane * width, run = least(width, size - start);
            const ENTRY *restrict in = source + first + start;
            ENTRY *restrict out = target + first + start;
            if (slope == 0)
                for (int64_t j = 0; j < run; j++)
                    out[j] = STORE((bits[j] >> plane & 1 ? LOAD(in[j]) : 0) * factor);
            else
                for (int64_t j = 0; j < run; j++) {
                    MATH value = LOAD(in[j]);
                    out[j] = STORE((bits[j] >> plane & 1 ? value : value * slope) * factor);
                }
        }
    }
    return 0;
}

/* Entries [begin, end) of a run that starts at entry `first` of the tensor whose mask it is. */
CLONES static int OF_TYPE(dropout_entries)(void *given, int thread, int64_t begin, int64_t end) {
    (void)thread;
    const mask_task *task = given;
    const ENTRY *restrict source = task->source;
    ENTRY *restrict target = task->target;
    const MATH factor = (MATH)task->factor;
    const uint32_t threshold = task->threshold;
    const stream_key lanes = key_of(task->seed, STREAM_DROPOUT_LANES);
    while (begin < end) {
        const int64_t entry = task->first + begin, tile = entry / TILE, stop = least(end, begin + TILE - entry % TILE);
        const uint32_t tile_word = hash_index((uint32_t)tile, key_of(task->seed, STREAM_DROPOUT));
        const uint32_t lane = (uint32_t)(entry % TILE);
        const ENTRY *restrict in = source + begin;
        ENTRY *restrict out = target + begin;
        for (int64_t j = 0; j < stop - begin; j++) {
            int kept = mix32(tile_word ^ hash_index(lane + (uint32_t)j, lanes)) >= threshold;
            out[j] = STORE(LOAD(in[j]) * (kept ? factor : 0));
        }
        begin = stop;
    }
    return 0;
}
