// Lists of the accumulators d[0], d[1], ... of a wgmma for its inline assembly: what it calls them, and which they are.
//
//   D10(3)          "%30,%31,...,%39"               by tens; D10() is "%0,%1,...,%9", D40 is "%0,%1,...,%39"
//   R16(K, 8)       K(d[8]), K(d[9]), ..., K(d[23])     K is the constraint, "+f" or "+r"
//
// Included before the lists are needed, which defines the macros, and again after, which takes them away.

#ifndef D10

#define D2(t) "%" #t "0,%" #t "1"
#define D4(t) D2(t) ",%" #t "2,%" #t "3"
#define D6(t) D4(t) ",%" #t "4,%" #t "5"
#define D8(t) D6(t) ",%" #t "6,%" #t "7"
#define D10(t) D8(t) ",%" #t "8,%" #t "9"
#define D20 D10() "," D10(1)
#define D40 D20 "," D10(2) "," D10(3)
#define D60 D40 "," D10(4) "," D10(5)
#define D80 D60 "," D10(6) "," D10(7)
#define D100 D80 "," D10(8) "," D10(9)
#define D120 D100 "," D10(10) "," D10(11)

#define R4(K, i) K(d[i]), K(d[(i) + 1]), K(d[(i) + 2]), K(d[(i) + 3])
#define R8(K, i) R4(K, i), R4(K, (i) + 4)
#define R16(K, i) R8(K, i), R8(K, (i) + 8)
#define R32(K, i) R16(K, i), R16(K, (i) + 16)
#define R48(K, i) R32(K, i), R16(K, (i) + 32)
#define R64(K, i) R32(K, i), R32(K, (i) + 32)
#define R96(K, i) R64(K, i), R32(K, (i) + 64)
#define R128(K, i) R64(K, i), R64(K, (i) + 64)

#else

#undef D2
#undef D4
#undef D6
#undef D8
#undef D10
#undef D20
#undef D40
#undef D60
#undef D80
#undef D100
#undef D120
#undef R4
#undef R8
#undef R16
#undef R32
#undef R48
#undef R64
#undef R96
#undef R128

#endif
