// Pooling and within-channel LRN on a CPU, each in one pass over memory where PyTorch's operators take several, and the
// gradients of a network's first layers.
// Tensors are channels last: [images, height, width, channels]. Arithmetic is in float for float and bf16, in double
// for double. Compiled by kernels.py, which also says what the arguments are.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

struct bf16 {
    uint16_t bits;
    bf16() = default;
    bf16(float value) {  // to the nearest, ties to even
        uint32_t x;
        std::memcpy(&x, &value, 4);
        bits = value != value ? 0x7fc0 : (x + 0x7fff + ((x >> 16) & 1)) >> 16;
    }
    operator float() const {
        const uint32_t x = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &x, 4);
        return value;
    }
};

// A register of the machine, in floats: channels are taken so many at a time. Wider vectors would be taken apart lane by
// lane. INTERLEAVE and UPPER pick halves of floats: zeros and a bf16 in turns, and each second.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#define INTERLEAVE                                                                                                      \
    0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define UPPER 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif defined(__AVX2__)
constexpr int LANES = 8;
#define INTERLEAVE 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15
#define UPPER 1, 3, 5, 7, 9, 11, 13, 15
#else
constexpr int LANES = 4;
#define INTERLEAVE 0, 4, 1, 5, 2, 6, 3, 7
#define UPPER 1, 3, 5, 7
#endif

// What a type is computed in, a register of that, and one of masks and places.
template <class T> struct Wide {
    using type = float;
    using Place = int32_t;
    typedef float Values __attribute__((vector_size(4 * LANES)));
    typedef int32_t Mask __attribute__((vector_size(4 * LANES)));
};
template <> struct Wide<double> {
    using type = double;
    using Place = int64_t;
    typedef double Values __attribute__((vector_size(8 * LANES)));
    typedef int64_t Mask __attribute__((vector_size(8 * LANES)));
};
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t Pairs __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

template <class V> inline V load(const void* from) {
    V values;
    std::memcpy(&values, from, sizeof(V));
    return values;
}
template <class T> inline typename Wide<T>::Values widened(const T* from) {
    return load<typename Wide<T>::Values>(from);
}
template <class T> inline void narrowed(const typename Wide<T>::Values& values, T* to) {
    std::memcpy(to, &values, sizeof(values));
}
// A bf16 is the upper half of a float, on little-endian machines the second.
template <> inline Wide<bf16>::Values widened(const bf16* from) {
#if defined(__clang__) || __GNUC__ >= 12
    const Halves upper = load<Halves>(from), lower{};
    return (Wide<bf16>::Values)__builtin_shufflevector(lower, upper, INTERLEAVE);
#else
    return (Wide<bf16>::Values)(__builtin_convertvector(load<Halves>(from), Words) << 16);
#endif
}
template <> inline void narrowed(const Wide<bf16>::Values& values, bf16* to) {
    const Words x = (Words)values, rounded = x + 0x7fff + ((x >> 16) & 1);
    const auto whole = values != values ? Words{} + 0x7fc00000 : rounded;
#if defined(__clang__) || __GNUC__ >= 12
    const Halves upper = __builtin_shufflevector((Pairs)whole, (Pairs)whole, UPPER);
#else
    const Halves upper = __builtin_convertvector((Words)whole >> 16, Halves);
#endif
    std::memcpy((void*)to, &upper, sizeof(upper));
}

// Ask for numbers before they are needed: an image's rows lie on pages of their own, at whose ends the processor's own
// prefetching stops.
template <class T> inline void prefetch(const T* from, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + i);
}

// Pooling, without padding ------------------------------------------------------------------------------------------------

struct Pool {
    int64_t images, height, width, channels, out_height, out_width, kernel, stride, relu, threads;
};

// The part of an axis that a window covers, and the windows that cover a place: from `first` to before `end`.
struct Range {
    int64_t first, end;
};
inline Range covered(int64_t window, int64_t size, const Pool& p) {
    return {window * p.stride, std::min(window * p.stride + p.kernel, size)};
}
inline std::vector<Range> covering(int64_t size, int64_t windows, const Pool& p) {  // for each place: divisions are slow
    std::vector<Range> all(size);
    for (int64_t at = 0; at < size; ++at)
        all[at] = {at < p.kernel ? 0 : (at - p.kernel) / p.stride + 1, std::min(at / p.stride + 1, windows)};
    return all;
}

// body(rows, columns), told when it is compiled how many they are where they are the usual ones.
template <class Body> inline void unrolled(int64_t rows, int64_t columns, const Body& body) {
    const std::integral_constant<int64_t, 1> one{};
    const std::integral_constant<int64_t, 2> two{};
    const std::integral_constant<int64_t, 3> three{};
    if (rows == 1 && columns == 1) return body(one, one);
    if (rows == 1 && columns == 2) return body(one, two);
    if (rows == 2 && columns == 1) return body(two, one);
    if (rows == 2 && columns == 2) return body(two, two);
    if (rows == 3 && columns == 3) return body(three, three);
    body(rows, columns);
}

// What the window below the one at (down, column) needs next.
template <class T> inline void prefetch_below(const T* image, const Range& down, int64_t column, const Pool& p) {
    for (int64_t h = down.end; h < down.end + p.stride; ++h)
        prefetch(image + (h * p.width + column * p.stride) * p.channels, p.stride * p.channels);
}

// winner: where in its window the maximum stands, in reading order; the first of equals, and NaN above all. With a ReLU
// behind, -1 where that stops it.
template <class T> void max_pool(const T* x, T* y, typename Wide<T>::Place* winner, const Pool& p) {
    using V = typename Wide<T>::Values;
    using M = typename Wide<T>::Mask;
    const int64_t rows = p.images * p.out_height, c = p.channels, line = p.width * c, kernel = p.kernel, relu = p.relu;
#pragma omp parallel for num_threads(p.threads)
    for (int64_t row = 0; row < rows; ++row) {
        const T* image = x + row / p.out_height * p.height * line;
        const Range down = covered(row % p.out_height, p.height, p);
        for (int64_t column = 0; column < p.out_width; ++column) {
            const Range across = covered(column, p.width, p);
            const T* corner = image + down.first * line + across.first * c;
            const int64_t to = (row * p.out_width + column) * c;
            prefetch_below(image, down, column, p);
            unrolled(down.end - down.first, across.end - across.first, [&](auto high, auto wide) {
                for (int64_t channel = 0; channel < c; channel += LANES) {
                    V best = V{} - INFINITY;
                    M place{};
                    for (int64_t h = 0; h < high; ++h)
                        for (int64_t w = 0; w < wide; ++w) {
                            const V value = widened(corner + h * line + w * c + channel);
                            const M more = (value > best) | (value != value);
                            best = more ? value : best;
                            place = more ? M{} + int32_t(h * kernel + w) : place;
                        }
                    if (relu) {
                        place = best <= 0 ? M{} - 1 : place;
                        best = best <= 0 ? V{} : best;
                    }
                    narrowed(best, y + to + channel);
                    std::memcpy(winner + to + channel, &place, sizeof(place));
                }
            });
        }
    }
}

// Each place of x gathers from the windows that cover it, so dx is written once and needs no zeros first.
template <class T> void max_pool_backward(const T* dy, const typename Wide<T>::Place* winner, T* dx, const Pool& p) {
    using V = typename Wide<T>::Values;
    using M = typename Wide<T>::Mask;
    const int64_t rows = p.images * p.height, width = p.width, c = p.channels, out_line = p.out_width * c;
    const int64_t right = p.stride, below = p.stride * p.kernel;  // how far windows on move a place back in them
    const auto downs = covering(p.height, p.out_height, p), acrosses = covering(p.width, p.out_width, p);
#pragma omp parallel for num_threads(p.threads)
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t image = row / p.height * p.out_height, h = row % p.height;
        const Range down = downs[h];
        for (int64_t w = 0; w < width; ++w) {
            const Range across = acrosses[w];
            const int64_t corner = (image + down.first) * out_line + across.first * c, to = (row * width + w) * c;
            const int64_t place = h * p.kernel - down.first * below + w - across.first * right;
            unrolled(down.end - down.first, across.end - across.first, [&](auto high, auto wide) {
                for (int64_t channel = 0; channel < c; channel += LANES) {
                    V sum{};
                    for (int64_t oh = 0; oh < high; ++oh)
                        for (int64_t ow = 0; ow < wide; ++ow) {
                            const int64_t out = corner + oh * out_line + ow * c + channel;
                            const M here = M{} + int32_t(place - oh * below - ow * right);
                            sum += load<M>(winner + out) == here ? widened(dy + out) : V{};
                        }
                    narrowed(sum, dx + to + channel);
                }
            });
        }
    }
}

// Averages of the pixels that a window really has, with a ReLU in front where one is asked for.
template <class T> void average_pool(const T* x, T* y, const Pool& p) {
    using V = typename Wide<T>::Values;
    const int64_t rows = p.images * p.out_height, c = p.channels, line = p.width * c, relu = p.relu;
#pragma omp parallel for num_threads(p.threads)
    for (int64_t row = 0; row < rows; ++row) {
        const T* image = x + row / p.out_height * p.height * line;
        const Range down = covered(row % p.out_height, p.height, p);
        for (int64_t column = 0; column < p.out_width; ++column) {
            const Range across = covered(column, p.width, p);
            const T* corner = image + down.first * line + across.first * c;
            const int64_t to = (row * p.out_width + column) * c;
            prefetch_below(image, down, column, p);
            unrolled(down.end - down.first, across.end - across.first, [&](auto high, auto wide) {
                for (int64_t channel = 0; channel < c; channel += LANES) {
                    V sum{};
                    for (int64_t h = 0; h < high; ++h)
                        for (int64_t w = 0; w < wide; ++w) {
                            const V value = widened(corner + h * line + w * c + channel);
                            sum += relu ? (value <= 0 ? V{} : value) : value;
                        }
                    sum /= typename Wide<T>::type(high * wide);
                    narrowed(sum, y + to + channel);
                }
            });
        }
    }
}

// An image's dy is divided first, once and not in each place that a window covers.
template <class T> void average_pool_backward(const T* dy, const T* x, T* dx, const Pool& p) {
    using A = typename Wide<T>::type;
    using V = typename Wide<T>::Values;
    const int64_t c = p.channels, out_line = p.out_width * c, out_size = p.out_height * out_line, relu = p.relu;
    const auto downs = covering(p.height, p.out_height, p), acrosses = covering(p.width, p.out_width, p);
#pragma omp parallel num_threads(p.threads)
    {
        thread_local std::vector<A> memory;  // kept: fresh memory costs more than what is done in it
        memory.resize(out_size);
        A* shares = memory.data();
#pragma omp for
        for (int64_t image = 0; image < p.images; ++image) {
            for (int64_t window = 0; window < p.out_height * p.out_width; ++window) {
                const Range down = covered(window / p.out_width, p.height, p);
                const Range across = covered(window % p.out_width, p.width, p);
                const A pixels = (down.end - down.first) * (across.end - across.first);
                for (int64_t at = window * c; at < (window + 1) * c; at += LANES)
                    narrowed(widened(dy + image * out_size + at) / pixels, shares + at);
            }
            for (int64_t h = 0; h < p.height; ++h) {
                const Range down = downs[h];
                for (int64_t w = 0; w < p.width; ++w) {
                    const Range across = acrosses[w];
                    const A* corner = shares + down.first * out_line + across.first * c;
                    const int64_t to = ((image * p.height + h) * p.width + w) * c;
                    unrolled(down.end - down.first, across.end - across.first, [&](auto high, auto wide) {
                        for (int64_t channel = 0; channel < c; channel += LANES) {
                            V sum{};
                            for (int64_t oh = 0; oh < high; ++oh)
                                for (int64_t ow = 0; ow < wide; ++ow)
                                    sum += widened(corner + oh * out_line + ow * c + channel);
                            if (relu) sum = widened(x + to + channel) <= 0 ? V{} : sum;
                            narrowed(sum, dx + to + channel);
                        }
                    });
                }
            }
        }
    }
}

// The gradients of a convolution of pixels that max pooling follows ---------------------------------------------------

constexpr int64_t SIDE = 5, REACH = SIDE / 2, COLOURS = 3;  // its square of weights, and the numbers of a pixel
constexpr int64_t ROW = 16, REGISTERS = ROW / LANES;        // a row of that square, filled up
constexpr int64_t TOGETHER = LANES == 16 ? 4 : 1;           // channels, whose sums AVX-512 has the registers for
constexpr int64_t SHARE = 2;                                // images whose gradients are added up in one place

// to: for each pixel of the image x, and of REACH lines of zeros above and below, the row of its neighbours, from REACH
// before it to REACH behind. `line` has room for a padded line of x, and zeros where those are.
template <class T, class A> inline void rows_of_neighbours(const T* x, A* to, A* line, const Pool& p) {
    for (int64_t h = 0; h < p.height; ++h) {
        std::copy_n(x + h * p.width * COLOURS, p.width * COLOURS, line + REACH * COLOURS);
        for (int64_t w = 0; w < p.width; ++w)
            std::memcpy(to + ((h + REACH) * p.width + w) * ROW, line + w * COLOURS, ROW * sizeof(A));
    }
}

// p: of the pooling, whose input the convolution of x gave, as large as x. dweight: [channels, SIDE, SIDE, COLOURS];
// dbias: [channels]. Of each window its maximum alone passes a gradient on, from the pixels around it: with a stride of 2
// a quarter of the products, and none of the memory, of a gradient of all that was convolved. Shares are added up in
// order, so that the number of threads changes no bit.
template <class T>
void convolve_max_pool_backward(const T* dy, const typename Wide<T>::Place* winner, const T* x,
                                typename Wide<T>::type* dweight, typename Wide<T>::type* dbias, const Pool& p) {
    using A = typename Wide<T>::type;
    using V = typename Wide<T>::Values;
    using M = typename Wide<T>::Mask;
    const int64_t c = p.channels, out_line = p.out_width * c, weights = c * SIDE * ROW, sums = weights + c;
    const int64_t line = p.width * ROW, size = (p.height + 2 * REACH) * line, pixels = p.width * COLOURS;
    const int64_t shares = std::max<int64_t>(1, (p.images + SHARE - 1) / SHARE);
    thread_local std::vector<A> kept;  // fresh memory costs more than what is done in it
    kept.assign(shares * sums, A(0));
    A* all = kept.data();
#pragma omp parallel num_threads(p.threads)
    {
        thread_local std::vector<A> memory;
        thread_local std::vector<typename Wide<T>::Place> places;
        memory.assign(ROW + size + out_line + pixels + 2 * ROW, A(0));
        places.resize(out_line);
        A* rows = memory.data() + (-uintptr_t(memory.data()) % 64) / sizeof(A);  // at whole lines of the cache
        A* passed = rows + size;                                                 // by each window of a line of them
        auto* starts = places.data();                                            // and to which of the rows
#pragma omp for schedule(static, SHARE)
        for (int64_t image = 0; image < p.images; ++image) {
            A* sum = all + image / SHARE * sums;
            rows_of_neighbours(x + image * p.height * pixels, rows, passed + out_line, p);
            for (int64_t oh = 0; oh < p.out_height; ++oh) {
                const int64_t out = (image * p.out_height + oh) * out_line;
                for (int64_t channel = 0; channel < c; channel += LANES) {
                    V line_passed{};
                    for (int64_t ow = 0; ow < p.out_width; ++ow) {
                        const int64_t at = ow * c + channel;
                        const M place = load<M>(winner + out + at);
                        M start = place * int32_t(ROW) + int32_t((oh * line + ow * ROW) * p.stride);
                        for (int64_t down = p.kernel; down < p.kernel * p.kernel; down += p.kernel)
                            start += place >= int32_t(down) ? M{} + int32_t(line - p.kernel * ROW) : M{};
                        start = place < 0 ? M{} : start;
                        std::memcpy(starts + at, &start, sizeof(start));
                        const V value = place < 0 ? V{} : widened(dy + out + at);
                        narrowed(value, passed + at);
                        line_passed += value;
                    }
                    narrowed(widened(sum + weights + channel) + line_passed, sum + weights + channel);
                }
                for (int64_t channel = 0; channel < c; channel += TOGETHER) {
                    A* to = sum + channel * SIDE * ROW;
                    V total[TOGETHER * SIDE * REGISTERS];
                    for (int64_t i = 0; i < TOGETHER * SIDE * REGISTERS; ++i) total[i] = widened(to + i * LANES);
                    for (int64_t at = channel; at < out_line; at += c)
                        for (int64_t k = 0; k < TOGETHER; ++k)
                            for (int64_t i = 0; i < SIDE * REGISTERS; ++i) {
                                const A* from = rows + starts[at + k] + i / REGISTERS * line + i % REGISTERS * LANES;
                                total[k * SIDE * REGISTERS + i] += passed[at + k] * widened(from);
                            }
                    for (int64_t i = 0; i < TOGETHER * SIDE * REGISTERS; ++i) narrowed(total[i], to + i * LANES);
                }
            }
        }
    }
    for (int64_t share = 1; share < shares; ++share)
        for (int64_t i = 0; i < sums; ++i) all[i] += all[share * sums + i];
    for (int64_t row = 0; row < c * SIDE; ++row)
        std::copy_n(all + row * ROW, SIDE * COLOURS, dweight + row * SIDE * COLOURS);
    std::copy_n(all + weights, c, dbias);
}

// Normalisation within a channel --------------------------------------------------------------------------------------

struct Norm {
    int64_t images, height, width, channels, reach, threads;  // a window is 2 * reach + 1 pixels wide and high
    double alpha, beta;
};

// then(place, sum over the place's window) for each register of row h, with value(place) what is added up; `column` holds
// a row. A place counts numbers from the image's start.
template <class V, class A, class Value, class Then>
inline void window_sums(int64_t h, A* column, const Norm& p, Value value, Then then) {
    const int64_t c = p.channels, row = p.width * c;
    const int64_t top = std::max<int64_t>(h - p.reach, 0), bottom = std::min(h + p.reach + 1, p.height);
    for (int64_t i = 0; i < row; i += LANES) {
        V sum = value(top * row + i);
        for (int64_t near = top + 1; near < bottom; ++near) sum += value(near * row + i);
        narrowed(sum, column + i);
    }
    for (int64_t w = 0; w < p.width; ++w) {
        const int64_t left = std::max<int64_t>(w - p.reach, 0), right = std::min(w + p.reach + 1, p.width);
        for (int64_t channel = 0; channel < c; channel += LANES) {
            V sum = widened(column + left * c + channel);
            for (int64_t near = left + 1; near < right; ++near) sum += widened(column + near * c + channel);
            then(h * row + w * c + channel, sum);
        }
    }
}

template <class V, class A> inline V raised(const V& base, A exponent) {
    V out;
    if (exponent == A(0.75))  // roots cost a fraction of a pow
        for (int l = 0; l < LANES; ++l) out[l] = std::sqrt(base[l]) * std::sqrt(std::sqrt(base[l]));
    else
        for (int l = 0; l < LANES; ++l) out[l] = std::pow(base[l], exponent);
    return out;
}

// With dy null: y = x * scale^-beta, scale = 1 + alpha * (mean of x^2 over the window). Else y is the gradient of x:
// dy * scale^-beta - 2 alpha beta x * (mean of dy * x * scale^(-beta - 1) over the window).
template <class T> void normalise(const T* x, const T* dy, T* y, const Norm& p) {
    using A = typename Wide<T>::type;
    using V = typename Wide<T>::Values;
    const int64_t row = p.width * p.channels, size = p.height * row, side = 2 * p.reach + 1;
    const A mean = A(p.alpha) / A(side * side), slope = A(-2 * p.beta) * mean, beta = A(p.beta);
#pragma omp parallel num_threads(p.threads)
    {
        thread_local std::vector<A> memory;  // kept: fresh memory costs more than what is done in it
        memory.resize(row + (dy ? 2 * size : 0));
        A* column = memory.data();
        A* direct = column + row;
        A* through_scale = direct + size;
#pragma omp for
        for (int64_t image = 0; image < p.images; ++image) {
            const T* in = x + image * size;
            const T* upstream = dy ? dy + image * size : nullptr;
            T* out = y + image * size;
            const auto square = [&](int64_t at) {
                const V value = widened(in + at);
                return value * value;
            };
            for (int64_t h = 0; h < p.height; ++h) {
                prefetch(in + (h + p.reach + 2) * row, row);
                if (dy) prefetch(upstream + (h + 2) * row, row);
                window_sums<V>(h, column, p, square, [&](int64_t at, const V& sum) {
                    const V value = widened(in + at), inverse = 1 / (1 + mean * sum), power = raised(inverse, beta);
                    if (!dy) return narrowed(value * power, out + at);
                    const V passed = widened(upstream + at) * power;
                    narrowed(passed, direct + at);
                    narrowed(passed * value * inverse, through_scale + at);
                });
            }
            for (int64_t h = 0; dy && h < p.height; ++h)
                window_sums<V>(h, column, p, [&](int64_t at) { return widened(through_scale + at); },
                    [&](int64_t at, const V& sum) {
                        narrowed(widened(direct + at) + slope * widened(in + at) * sum, out + at);
                    });
        }
    }
}

#define EXPORT(T, name)                                                                                             \
    extern "C" {                                                                                                    \
    void max_pool_##name(const T* x, T* y, Wide<T>::Place* winner, const Pool* p) { max_pool(x, y, winner, *p); }   \
    void max_pool_backward_##name(const T* dy, const Wide<T>::Place* winner, T* dx, const Pool* p) {                \
        max_pool_backward(dy, winner, dx, *p);                                                                      \
    }                                                                                                               \
    void convolve_max_pool_backward_##name(const T* dy, const Wide<T>::Place* winner, const T* x,                   \
                                           Wide<T>::type* dweight, Wide<T>::type* dbias, const Pool* p) {           \
        convolve_max_pool_backward(dy, winner, x, dweight, dbias, *p);                                              \
    }                                                                                                               \
    void average_pool_##name(const T* x, T* y, const Pool* p) { average_pool(x, y, *p); }                           \
    void average_pool_backward_##name(const T* dy, const T* x, T* dx, const Pool* p) {                              \
        average_pool_backward(dy, x, dx, *p);                                                                       \
    }                                                                                                               \
    void normalise_##name(const T* x, const T* dy, T* y, const Norm* p) { normalise(x, dy, y, *p); }                \
    }

EXPORT(float, float32)
EXPORT(double, float64)
EXPORT(bf16, bfloat16)
