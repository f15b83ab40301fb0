/* Coding and decoding of rows; included once for each TYPE, with ENTRY, SUM, LOAD and STORE. */

/* Row `row` of the matrix, less `mean` and times `factor` where there are such, as SUM; where it lies if it can be. */
static inline const SUM *OF_TYPE(read_row)(const encode_task *task, int64_t row, SUM *restrict buffer) {
    const ENTRY *entries = (const ENTRY *)task->matrix + row * task->row_stride;
    const int64_t columns = task->to.num_columns, stride = task->column_stride;
    const SUM *mean = task->mean, *factor = task->factor;
    if (mean == NULL && stride == 1 && sizeof(ENTRY) == sizeof(SUM))
        return (const SUM *)(const void *)entries;
    if (stride != 1)
        for (int64_t c = 0; c < columns; c++)
            buffer[c] = LOAD(entries[c * stride]);
    else if (mean == NULL)
        for (int64_t c = 0; c < columns; c++)
            buffer[c] = LOAD(entries[c]);
    else
        for (int64_t c = 0; c < columns; c++)
            buffer[c] = (LOAD(entries[c]) - mean[c]) * factor[c];
    if (stride != 1 && mean != NULL)
        for (int64_t c = 0; c < columns; c++)
            buffer[c] = (buffer[c] - mean[c]) * factor[c];
    return buffer;
}

/* Least and largest of a run of entries; nan where one is not finite or the range is not. */
static inline void OF_TYPE(range_of)(const SUM *restrict entries, int64_t count, SUM *lowest, SUM *highest) {
    enum { LANES = 64 / sizeof(SUM) };
    typedef SUM lanes __attribute__((vector_size(64)));
    lanes low, high, odd = {0};
    for (int lane = 0; lane < LANES; lane++)
        low[lane] = high[lane] = entries[0];
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) {
        lanes value;
        memcpy(&value, entries + c, sizeof value);
        low = (lanes)CHOOSE(value < low, value, low);
        high = (lanes)CHOOSE(value > high, value, high);
        odd += value - value; /* 0, or nan from here on */
    }
    for (int lane = 0; c < count; c++, lane++) {
        SUM value = entries[c];
        low[lane] = value < low[lane] ? value : low[lane];
        high[lane] = value > high[lane] ? value : high[lane];
        odd[lane] += value - value;
    }
    for (int lane = 1; lane < LANES; lane++) {
        low[0] = low[lane] < low[0] ? low[lane] : low[0];
        high[0] = high[lane] > high[0] ? high[lane] : high[0];
        odd[0] += odd[lane];
    }
    SUM spread = high[0] - low[0];
    *highest = high[0];
    *lowest = odd[0] == 0 && spread - spread == 0 ? low[0] : (SUM)NAN;
}

static inline void OF_TYPE(quantise)(const SUM *restrict entries, const SUM *restrict column_noise, SUM row_noise,
                                     int64_t count, SUM offset, SUM divisor, SUM levels, uint8_t *restrict codes) {
    for (int64_t c = 0; c < count; c++) {
        SUM noise = row_noise + column_noise[c];
        noise -= noise >= 1 ? (SUM)1 : (SUM)0;
        SUM level = (entries[c] - offset) / divisor + noise;
        level = level > 0 ? level : 0; /* nan as well */
        level = level < levels ? level : levels;
        codes[c] = (uint8_t)(int32_t)level;
    }
}

CLONES static int OF_TYPE(encode_rows)(void *given, int thread, int64_t begin, int64_t end) {
    (void)thread;
    const encode_task *task = given;
    const coded *to = &task->to;
    const int64_t columns = to->num_columns;
    const SUM *column_noise = task->column_noise;
    const SUM levels = (SUM)((1 << to->bits) - 1);
    const size_t room = (size_t)to->width * (size_t)(8 / to->bits);
    SUM *buffer = malloc(sizeof(SUM) * (size_t)columns + room);
    if (buffer == NULL)
        return NO_MEMORY;
    uint8_t *codes = (uint8_t *)(buffer + columns);
    memset(codes, 0, room);
    const stream_key key = key_of(task->seed, STREAM_ROUNDING);
    for (int64_t row = begin; row < end; row++) {
        const SUM *entries = OF_TYPE(read_row)(task, row, buffer);
        const SUM row_noise = uniform_of(hash_index((uint32_t)(task->first + row), key));
        for (int64_t group = 0; group < to->groups; group++) {
            const int64_t from = group * to->group_size, until = least(from + to->group_size, columns);
            const int64_t place = row * 2 * to->groups + group;
            SUM low, high;
            OF_TYPE(range_of)(entries + from, until - from, &low, &high);
            const SUM offset = to->wide ? directed_float(low, 0) : directed_bf16(low, 0);
            const SUM exact_step = (high - offset) / levels;
            const SUM step = to->wide ? directed_float(exact_step, 1) : directed_bf16(exact_step, 1);
            write_scale(to, place, (float)offset);
            write_scale(to, place + to->groups, (float)step);
            const SUM divisor = step == 0 ? 1 : step;
            OF_TYPE(quantise)(entries + from, column_noise + from, row_noise, until - from, offset, divisor, levels,
                              codes + from);
        }
        pack_row(codes, to->codes + row * to->width, to->width, to->bits);
    }
    free(buffer);
    return 0;
}

/* One row of what was coded; `levels` has room for its codes. */
static inline void OF_TYPE(decode_row)(const coded *from, int64_t row, uint8_t *restrict levels, SUM *restrict out) {
    const uint8_t *codes = from->codes + row * from->width;
    if (from->bits != 8) {
        unpack_row(codes, levels, from->width, from->bits);
        codes = levels;
    }
    for (int64_t group = 0; group < from->groups; group++) {
        const int64_t begin = group * from->group_size, end = least(begin + from->group_size, from->num_columns);
        const int64_t place = row * 2 * from->groups + group;
        const SUM offset = read_scale(from, place), step = read_scale(from, place + from->groups);
        for (int64_t c = begin; c < end; c++)
            out[c] = (SUM)codes[c] * step + offset;
    }
}

CLONES static int OF_TYPE(decode_rows)(void *given, int thread, int64_t begin, int64_t end) {
    (void)thread;
    const decode_task *task = given;
    const int64_t columns = task->from.num_columns;
    const size_t room = (size_t)task->from.width * (size_t)(8 / task->from.bits);
    SUM *buffer = malloc(sizeof(SUM) * (size_t)columns + room);
    if (buffer == NULL)
        return NO_MEMORY;
    uint8_t *levels = (uint8_t *)(buffer + columns);
    for (int64_t row = begin; row < end; row++) {
        ENTRY *out = (ENTRY *)task->out + row * columns;
        if (sizeof(ENTRY) == sizeof(SUM))
            OF_TYPE(decode_row)(&task->from, row, levels, (SUM *)(void *)out);
        else {
            OF_TYPE(decode_row)(&task->from, row, levels, buffer);
            for (int64_t c = 0; c < columns; c++)
                out[c] = STORE(buffer[c]);
        }
    }
    free(buffer);
    return 0;
}

/* Column sums of the gradient, and of its products with what was coded. */
CLONES static int OF_TYPE(reduce_rows)(void *given, int thread, int64_t begin, int64_t end) {
    const norm_task *task = given;
    const int64_t columns = task->from.num_columns;
    const size_t room = (size_t)task->from.width * (size_t)(8 / task->from.bits);
    double *totals = task->totals + thread * 2 * columns;
    SUM *buffer = calloc(1, sizeof(SUM) * 3 * (size_t)columns + room);
    if (buffer == NULL)
        return NO_MEMORY;
    SUM *restrict sums = buffer + columns, *restrict products = buffer + 2 * columns;
    uint8_t *levels = (uint8_t *)(buffer + 3 * columns);
    for (int64_t row = begin; row < end; row++) {
        const ENTRY *gradient = (const ENTRY *)task->gradient + row * columns;
        OF_TYPE(decode_row)(&task->from, row, levels, buffer);
        for (int64_t c = 0; c < columns; c++) {
            SUM value = LOAD(gradient[c]);
            sums[c] += value;
            products[c] += value * buffer[c];
        }
        if ((row - begin) % BATCH == BATCH - 1 || row == end - 1)
            for (int64_t c = 0; c < columns; c++) {
                totals[c] += (double)sums[c];
                totals[columns + c] += (double)products[c];
                sums[c] = products[c] = 0;
            }
    }
    free(buffer);
    return 0;
}

/* The gradient of what was normalised: (g - mean_gradient - x_hat mean_product) factor. */
CLONES static int OF_TYPE(norm_gradient_rows)(void *given, int thread, int64_t begin, int64_t end) {
    (void)thread;
    const norm_task *task = given;
    const int64_t columns = task->from.num_columns;
    const SUM *factor = task->factor, *mean_gradient = task->mean_gradient, *mean_product = task->mean_product;
    const size_t room = (size_t)task->from.width * (size_t)(8 / task->from.bits);
    SUM *buffer = malloc(sizeof(SUM) * (size_t)columns + room);
    if (buffer == NULL)
        return NO_MEMORY;
    uint8_t *levels = (uint8_t *)(buffer + columns);
    for (int64_t row = begin; row < end; row++) {
        const ENTRY *restrict gradient = (const ENTRY *)task->gradient + row * columns;
        ENTRY *restrict out = (ENTRY *)task->out + row * columns;
        OF_TYPE(decode_row)(&task->from, row, levels, buffer);
        for (int64_t c = 0; c < columns; c++)
            out[c] = STORE((LOAD(gradient[c]) - (mean_gradient[c] + buffer[c] * mean_product[c])) * factor[c]);
    }
    free(buffer);
    return 0;
}
