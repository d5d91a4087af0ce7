// Read one list of a nearcast store in Redis, with the standard library alone.
//
//     java ReadList.java HOST:PORT GENERATOR KEY
//
// Prints [[item, score], ...], best first, without items that the overlay has removed; null if there is no such key.
// The formats are described in docs/store-format.md, the keys in docs/stores.md. Not covered: canaries, a Cluster, and keys
// of more than 480 bytes, which need BLAKE2b. With Jedis, `call` is one line.

import java.io.BufferedInputStream;
import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.PrintStream;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.zip.CRC32;

public class ReadList {
    static final int TRIES = 5; // a version may be retired, or a patch made, while a list is read

    /** An item, a String or a Long, with its score. */
    record Candidate(Object item, float score) {}

    /** A stored list; bytes is null if there is none. */
    record Stored(byte[] bytes, boolean changed) {}

    /** A connection that sends commands in the protocol RESP2. */
    static final class Redis implements AutoCloseable {
        private final Socket socket = new Socket();
        private final InputStream answers;

        Redis(String host, int port) throws IOException {
            socket.connect(new InetSocketAddress(host, port), 5_000);
            socket.setSoTimeout(5_000);
            answers = new BufferedInputStream(socket.getInputStream());
        }

        /** Send a command; parts are Strings or byte arrays. Returns null, byte[], Long or List. */
        Object call(Object... words) throws IOException {
            var command = new ByteArrayOutputStream();
            command.writeBytes(("*" + words.length + "\r\n").getBytes(StandardCharsets.US_ASCII));
            for (Object word : words) {
                byte[] data = word instanceof byte[] bytes ? bytes : utf8((String) word);
                command.writeBytes(("$" + data.length + "\r\n").getBytes(StandardCharsets.US_ASCII));
                command.writeBytes(data);
                command.writeBytes(new byte[] {'\r', '\n'});
            }
            socket.getOutputStream().write(command.toByteArray());
            return read();
        }

        byte[] bytes(Object... words) throws IOException {
            return (byte[]) call(words);
        }

        private Object read() throws IOException {
            String line = readLine(), text = line.substring(1);
            switch (line.charAt(0)) {
                case '+': return utf8(text);
                case '-': throw new IOException(text);
                case ':': return Long.parseLong(text);
                default:
            }
            int length = Integer.parseInt(text);
            if (length < 0) return null;
            if (line.charAt(0) == '$') {
                byte[] data = answers.readNBytes(length + 2);
                if (data.length < length + 2) throw new EOFException("the server has closed the connection");
                return Arrays.copyOf(data, length);
            }
            List<Object> parts = new ArrayList<>();
            for (int i = 0; i < length; i++) parts.add(read());
            return parts;
        }

        private String readLine() throws IOException {
            var line = new ByteArrayOutputStream();
            for (int next = answers.read(); next != '\n'; next = answers.read()) {
                if (next < 0) throw new EOFException("the server has closed the connection");
                if (next != '\r') line.write(next);
            }
            return line.toString(StandardCharsets.UTF_8);
        }

        @Override
        public void close() throws IOException {
            socket.close();
        }
    }

    /** A reader of JSON: Map, List, String, Double, Boolean or null. Use your JSON library instead. */
    static final class Json {
        private final String text;
        private int at = 0;

        Json(byte[] data) {
            text = new String(data, StandardCharsets.UTF_8);
        }

        Object value() {
            char first = next();
            switch (first) {
                case '{': {
                    Map<String, Object> map = new LinkedHashMap<>();
                    for (char c = next(); c != '}'; c = next()) {
                        if (c == ',') next();
                        String name = string();
                        next(); // the colon
                        map.put(name, value());
                    }
                    return map;
                }
                case '[': {
                    List<Object> list = new ArrayList<>();
                    for (char c = next(); c != ']'; c = next()) {
                        if (c != ',') at--;
                        list.add(value());
                    }
                    return list;
                }
                case '"': return string();
                default:
            }
            int start = at - 1;
            while (at < text.length() && ",]} \n\r\t".indexOf(text.charAt(at)) < 0) at++;
            String word = text.substring(start, at);
            return switch (word) {
                case "null" -> null;
                case "true" -> true;
                case "false" -> false;
                default -> Double.valueOf(word);
            };
        }

        private char next() {
            while (Character.isWhitespace(text.charAt(at))) at++;
            return text.charAt(at++);
        }

        private String string() { // after its opening quote
            var made = new StringBuilder();
            for (char c = text.charAt(at++); c != '"'; c = text.charAt(at++)) {
                if (c != '\\') {
                    made.append(c);
                    continue;
                }
                char escaped = text.charAt(at++);
                if (escaped == 'u') {
                    made.append((char) Integer.parseInt(text.substring(at, at + 4), 16));
                    at += 4;
                } else {
                    int known = "bfnrt".indexOf(escaped);
                    made.append(known < 0 ? escaped : "\b\f\n\r\t".charAt(known));
                }
            }
            return made.toString();
        }
    }

    @SuppressWarnings("unchecked")
    static Map<String, Object> object(Object json) {
        return json == null ? Map.of() : (Map<String, Object>) json;
    }

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static byte[] encodeKey(String key, String ids) {
        if (ids.equals("int64")) {
            try {
                return ByteBuffer.allocate(8).putLong(Long.parseLong(key) ^ Long.MIN_VALUE).array();
            } catch (NumberFormatException error) {
                return null; // in no table whose keys are numbers
            }
        }
        byte[] data = utf8(key);
        if (data.length > 480) throw new IllegalArgumentException("keys of more than 480 bytes need BLAKE2b");
        return data.length == 0 ? new byte[] {0, (byte) 0xff} : data;
    }

    static List<Candidate> decodeList(byte[] value) {
        var data = ByteBuffer.wrap(value).order(ByteOrder.LITTLE_ENDIAN);
        if ((value[0] & 0xff) >> 4 != 1) throw new IllegalArgumentException("the list has an unknown format");
        int kind = value[0] & 15, n = data.getShort(2) & 0xffff, ids = 4 + 4 * n, text = 4 + 6 * n;
        List<Candidate> list = new ArrayList<>();
        for (int i = 0; i < n; i++) {
            Object item;
            if (kind == 0) {
                item = data.getInt(ids + 4 * i) & 0xffffffffL;
            } else if (kind == 1) {
                item = data.getLong(ids + 8 * i);
            } else {
                int length = data.getShort(ids + 2 * i) & 0xffff;
                item = new String(value, text, length, StandardCharsets.UTF_8);
                text += length;
            }
            list.add(new Candidate(item, data.getFloat(4 + 4 * i)));
        }
        return list;
    }

    static Stored readValue(Redis redis, String generator, String key) throws IOException {
        String prefix = "nearcast:" + generator;
        byte[] pointer = redis.bytes("GET", prefix + ":current");
        if (pointer == null) throw new IOException(generator + " is not published");
        long number = ((Double) object(new Json(pointer).value()).get("version")).longValue();
        String version = prefix + ":v:" + number;
        var facts = (List<?>) redis.call("HMGET", version + ":facts", "load", "buckets", "facts", "patch_serial");
        if (facts.get(0) == null) return new Stored(null, true); // retired: the pointer has moved
        byte[] encoded = encodeKey(key, (String) object(new Json((byte[]) facts.get(2)).value()).get("query_ids"));
        if (encoded == null) return new Stored(null, false);
        var crc = new CRC32();
        crc.update(encoded);
        byte[] value = readPatches(redis, prefix, number, encoded, crc.getValue());
        if (value == null) {
            long bucket = crc.getValue() % Long.parseLong(string(facts.get(1)));
            value = redis.bytes("HGET", version + ":" + string(facts.get(0)) + ":lists:" + bucket, encoded);
        }
        // after the data: it was there then
        var now = (List<?>) redis.call("HMGET", version + ":facts", "load", "patch_serial");
        boolean same = Arrays.equals((byte[]) now.get(0), (byte[]) facts.get(0))
                && Arrays.equals((byte[]) now.get(1), (byte[]) facts.get(3));
        return new Stored(value, !same);
    }

    static String string(Object data) {
        return new String((byte[]) data, StandardCharsets.UTF_8);
    }

    /** Return the newest value of a key in the patches: null if no patch has it, empty if one removes it. */
    static byte[] readPatches(Redis redis, String prefix, long version, byte[] key, long hash) throws IOException {
        byte[] data = redis.bytes("GET", prefix + ":patches");
        if (data == null) return null;
        var versions = object(object(new Json(data).value()).get("versions"));
        var segments = (List<?>) object(versions.get(Long.toString(version))).getOrDefault("segments", List.of());
        for (int i = segments.size() - 1; i >= 0; i--) {
            var segment = object(segments.get(i));
            long bucket = hash % ((Double) object(segment.get("counts")).get("buckets")).longValue();
            String name = prefix + ":v:" + version + ":p:" + segment.get("name") + ":lists:" + bucket;
            byte[] value = redis.bytes("HGET", name, key);
            if (value != null) return value;
        }
        return null;
    }

    /** Leave out the items that the overlay has removed. */
    static List<Candidate> withoutRemoved(Redis redis, String generator, List<Candidate> list) throws IOException {
        if (list.isEmpty()) return list;
        List<Object> words = new ArrayList<>(List.of("HMGET", "nearcast:" + generator + ":overlay:entries"));
        for (Candidate candidate : list) words.add("[" + quote(candidate.item()) + ", null]");
        var entries = (List<?>) redis.call(words.toArray());
        List<Candidate> kept = new ArrayList<>();
        for (int i = 0; i < list.size(); i++) {
            var entry = entries.get(i) == null ? Map.<String, Object>of() : object(new Json((byte[]) entries.get(i)).value());
            boolean ended = entry.get("until") instanceof Double until && until <= System.currentTimeMillis() / 1e3;
            boolean removed = Boolean.TRUE.equals(entry.get("value")) && !Boolean.TRUE.equals(entry.get("lifted"));
            if (!removed || ended) kept.add(list.get(i));
        }
        return kept;
    }

    /** Return an item as JSON, as Python's json module writes it. */
    static String quote(Object item) {
        if (!(item instanceof String text)) return item.toString();
        var quoted = new StringBuilder("\"");
        for (char letter : text.toCharArray()) {
            int known = "\"\\\b\f\n\r\t".indexOf(letter);
            if (known >= 0) quoted.append('\\').append("\"\\bfnrt".charAt(known));
            else if (letter < ' ') quoted.append(String.format("\\u%04x", (int) letter));
            else quoted.append(letter);
        }
        return quoted.append('"').toString();
    }

    static List<Candidate> read(String address, String generator, String key) throws IOException {
        int colon = address.lastIndexOf(':');
        try (var redis = new Redis(address.substring(0, colon), Integer.parseInt(address.substring(colon + 1)))) {
            for (int i = 0; i < TRIES; i++) {
                Stored stored = readValue(redis, generator, key);
                if (stored.changed()) continue;
                if (stored.bytes() == null || stored.bytes().length == 0) return null;
                return withoutRemoved(redis, generator, decodeList(stored.bytes()));
            }
            throw new IOException("the store changed while it was read");
        }
    }

    public static void main(String[] arguments) throws IOException {
        if (arguments.length != 3) {
            System.err.println("usage: ReadList HOST:PORT GENERATOR KEY");
            System.exit(2);
        }
        List<Candidate> list = read(arguments[0], arguments[1], arguments[2]);
        var printed = new ArrayList<String>();
        for (Candidate candidate : list == null ? List.<Candidate>of() : list) {
            printed.add("[" + quote(candidate.item()) + ", " + candidate.score() + "]");
        }
        var out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        out.println(list == null ? "null" : "[" + String.join(", ", printed) + "]");
    }
}
