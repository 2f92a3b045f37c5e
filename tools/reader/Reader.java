import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.DateTimeException;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Collection;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.function.Supplier;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Reads what a connector left in Kafka and in storage, and compares it with what the simulated corp really said. It is built on
 * Kafka's own client and shares no code with the connector: a mistake can't be on both sides.
 *
 * <p>Ends with 0 when all is clean, with 1 on findings, with 2 when it could not look.
 */
public final class Reader {
    static final String USAGE = """
            Usage: java -cp '…/libs/*' Reader.java OPTIONS
              --bootstrap ADDRESS             the broker
              --expected FILE                 output of wecom-simulator list, one JSON object a line
              --connector NAME  --corp CORP   whose offset and whose events
              --topic T  --offsets-topic T    where they are
              --media-topic T  --media-requests-topic T  --dead-letter-topic T
                                              the other topics, unless named after the first as by default
              --s3-root FOLDER                where the S3 server keeps its buckets, for s3:// references
              --wait SECONDS                  how long to wait for further references while none comes
              --clock-behind SECONDS          how far the connector's clock may have been behind
              --clock-ahead SECONDS           how far it may have been ahead
              --property KEY=VALUE            a setting of the Kafka client, as for SASL; may be repeated
              --json                          the report as JSON""";

    /** How long a topic may give nothing before its end. */
    static final Duration PATIENCE = Duration.ofSeconds(30);

    /** How long WeCom keeps a record. */
    static final Duration WINDOW = Duration.ofDays(5);

    /** How far a message's time may be ahead of the pull, as clocks differ. */
    static final Duration AHEAD = Duration.ofHours(1);

    static final String MESSAGE = "wecom.archive.message";
    static final String GAP = "wecom.archive.gap";

    static final ObjectMapper JSON = new ObjectMapper();
    static final JsonFactory TOKENS = new JsonFactory();

    /** One promise of the connector, and where it was found broken. */
    static final class Check {
        static final int SHOWN = 5;
        final String name;
        long checked;
        long broken;
        String note = "";
        final List<String> examples = new ArrayList<>();

        Check(String name) {
            this.name = name;
        }

        void that(boolean holds, Supplier<String> otherwise) {
            checked++;
            if (!holds) {
                broken++;
                if (examples.size() < SHOWN) {
                    examples.add(otherwise.get());
                }
            }
        }

        @Override
        public String toString() {
            StringBuilder line = new StringBuilder();
            line.append(String.format("%-6s %-58s %,9d checked", broken == 0 ? "ok" : "BROKEN", name, checked));
            if (broken > 0) {
                line.append(String.format(", %,d broken", broken));
            }
            if (!note.isEmpty()) {
                line.append(", ").append(note);
            }
            examples.forEach(example -> line.append("\n         ").append(example));
            return line.toString();
        }
    }

    final Map<String, String> options;
    final Properties client = new Properties();
    final Duration wait;
    final Duration clockBehind;
    final Duration clockAhead;
    final Map<String, Check> checks = new LinkedHashMap<>();
    final Map<String, Map<String, Long>> counts = new LinkedHashMap<>();

    /** What the corp said, by seq. */
    final Map<Long, JsonNode> expected = new TreeMap<>();

    Reader(Map<String, String> options, List<String> properties) {
        this.options = options;
        wait = Duration.ofSeconds(Long.parseLong(options.getOrDefault("--wait", "0")));
        clockBehind = Duration.ofSeconds(Long.parseLong(options.getOrDefault("--clock-behind", "0")));
        clockAhead = Duration.ofSeconds(Long.parseLong(options.getOrDefault("--clock-ahead", "0")));
        client.put("bootstrap.servers", option("--bootstrap"));
        client.put("isolation.level", "read_committed");
        client.put("allow.auto.create.topics", "false");
        client.put("enable.auto.commit", "false");
        client.put("max.poll.records", "5000");
        client.put("max.partition.fetch.bytes", "16777216");
        for (String property : properties) {
            String[] parts = property.split("=", 2);
            client.put(parts[0], parts[1]);
        }
    }

    /** A topic, by default named after the messages' one as the connector does. */
    String topic(String name, String suffix) {
        return options.getOrDefault(name, option("--topic") + suffix);
    }

    String option(String name) {
        String value = options.get(name);
        if (value == null) {
            throw new IllegalArgumentException(name + " is missing\n" + USAGE);
        }
        return value;
    }

    Check check(String name) {
        return checks.computeIfAbsent(name, Check::new);
    }

    void count(String what, String which) {
        counts.computeIfAbsent(what, key -> new TreeMap<>()).merge(which, 1L, Long::sum);
    }

    public static void main(String[] arguments) {
        Map<String, String> options = new HashMap<>();
        List<String> properties = new ArrayList<>();
        for (int i = 0; i < arguments.length; i++) {
            switch (arguments[i]) {
                case "--help" -> {
                    System.out.println(USAGE);
                    return;
                }
                case "--json" -> options.put("--json", "");
                case "--property" -> properties.add(arguments[++i]);
                default -> options.put(arguments[i], i + 1 < arguments.length ? arguments[++i] : "");
            }
        }
        try {
            Reader reader = new Reader(options, properties);
            reader.run();
            System.exit(reader.report() ? 0 : 1);
        } catch (Exception error) {
            System.err.println("reader: " + error);
            System.exit(2);
        }
    }

    void run() throws IOException {
        readExpected();
        readMessages();
        checkTimestamps();
        readDeadLetters();
        checkAllThere();
        checkChain();
        readOffset();
        readMedia();
    }

    boolean report() throws IOException {
        long broken = checks.values().stream().mapToLong(check -> check.broken).sum();
        if (options.containsKey("--json")) {
            ObjectNode report = JSON.createObjectNode();
            report.put("clean", broken == 0);
            report.set("counts", JSON.valueToTree(counts));
            for (Check check : checks.values()) {
                ObjectNode node = report.withArray("/checks").addObject();
                node.put("name", check.name).put("checked", check.checked).put("broken", check.broken);
                node.put("note", check.note).set("examples", JSON.valueToTree(check.examples));
            }
            System.out.println(report.toPrettyString());
        } else {
            checks.values().forEach(System.out::println);
            counts.forEach((what, which) -> {
                StringBuilder line = new StringBuilder(what).append(":");
                which.forEach((key, number) -> {
                    String word = String.format(" %s %,d", key, number);
                    if (line.length() - Math.max(line.lastIndexOf("\n"), 0) + word.length() > 110) {
                        line.append("\n   ");
                    }
                    line.append(word);
                });
                System.out.println(line);
            });
            System.out.println(broken == 0 ? "verdict: clean" : "verdict: " + broken + " findings");
        }
        return broken == 0;
    }

    // What was said

    void readExpected() throws IOException {
        try (var lines = Files.lines(Path.of(option("--expected")))) {
            for (String line : (Iterable<String>) lines::iterator) {
                JsonNode one = JSON.readTree(line);
                if (text(one, "corp_id").equals(option("--corp"))) {
                    expected.put(one.path("seq").asLong(), one);
                }
            }
        }
        if (expected.isEmpty()) {
            throw new IllegalStateException("nothing of " + option("--corp") + " stands in " + option("--expected"));
        }
    }

    /** Fields of the event, and of the list. */
    static final String[][] FIELDS = {
        {"msgid", "msgid"}, {"publickey_ver", "publickey_ver"}, {"msgtype", "msgtype"}, {"action", "action"},
        {"from", "from"}, {"to", "to"}, {"room_id", "roomid"}, {"msgtime_ms", "msgtime_ms"},
    };

    /** Text, or a list of texts, to be compared; absent, null and empty are the same. */
    static String flat(JsonNode node) {
        return node.isArray() ? (node.isEmpty() ? "" : node.toString()) : node.asText("");
    }

    static Set<String> paths(JsonNode node) {
        Set<String> paths = new TreeSet<>();
        node.path("media").forEach(media -> paths.add(text(media, "path")));
        return paths;
    }

    static boolean isMessage(JsonNode one) {
        return text(one, "expect").equals("message");
    }

    // What arrived

    final Map<Long, Integer> messagesBySeq = new HashMap<>();
    final Map<Long, Integer> deadLettersBySeq = new HashMap<>();

    /** Where the dead letters stood that are messages now, and the seq of each message. */
    final Map<String, Long> replayed = new TreeMap<>();

    /** Messages and dead letters that have a seq, but for those that were replayed. */
    final List<Link> links = new ArrayList<>();

    /** The times of a message: its own, that of its record, and why that is another one. */
    record Stamp(long seq, long msgtime, long timestamp, String from, boolean replayed, String at) {}

    final List<Stamp> stamps = new ArrayList<>();

    /** What a record says stood before it, as it says it. */
    record Link(long seq, String previousSeq, String at) {}

    /** After and before which records some may be lost. */
    record Gap(long afterSeq, long beforeSeq) {}

    final List<Gap> gaps = new ArrayList<>();

    void readMessages() {
        Check order = check("order within a conversation is seq order");
        Check partition = check("partition is the one of the Java client's partitioner");
        Check fields = check("event's fields are what the corp said");
        Check bytes = check("message bytes are the decrypted ones");
        Check headers = check("CloudEvents headers are those of the event");
        Check keys = check("one record key per conversation");
        Map<String, Long> lastSeqByKey = new HashMap<>();
        Map<String, Set<String>> conversationsByKey = new TreeMap<>();
        Map<String, Set<String>> keysByConversation = new TreeMap<>();
        Map<String, Long> repaired = new TreeMap<>();
        read(option("--topic"), (record, partitions) -> {
            Envelope event = Envelope.parse(record.value());
            if (event == null) {
                check("every value is JSON").that(false, () -> at(record));
                return;
            }
            if (!text(event.fields, "corp_id").equals(option("--corp"))) {
                return;
            }
            check("every value is JSON").that(true, null);
            if (header(record, "ce_type").equals(GAP)) {
                readGap(record, event.fields);
                return;
            }
            long seq = event.fields.path("seq").asLong(-1);
            messagesBySeq.merge(seq, 1, Integer::sum);
            count("messages", text(event.fields, "msgtype").isEmpty() ? "(none)" : text(event.fields, "msgtype"));

            String key = new String(record.key(), StandardCharsets.UTF_8);
            if (header(record, "wecom.replayed_from").isEmpty()) {
                Long last = lastSeqByKey.put(key, seq);
                order.that(last == null || last < seq, () -> "seq " + seq + " after " + last + " " + at(record));
                links.add(new Link(seq, header(record, "wecom.previous_seq"), at(record)));
            } else {
                check("every replayed message has the dead letter that it names").that(
                        replayed.put(header(record, "wecom.replayed_from"), seq) == null,
                        () -> "seq " + seq + ": the dead letter was replayed before " + at(record));
            }
            int right = BuiltInPartitioner.partitionForKey(record.key(), partitions);
            partition.that(record.partition() == right, () -> "should be partition " + right + ": " + at(record));
            headers.that(headersAreRight(record, event.fields),
                    () -> "headers of seq " + seq + " " + at(record) + ": " + Arrays.toString(record.headers().toArray()));
            long msgtime = event.fields.path("msgtime_ms").asLong(0);
            stamps.add(new Stamp(seq, msgtime, record.timestamp(), header(record, "wecom.timestamp_from"),
                    !header(record, "wecom.replayed_from").isEmpty(), at(record)));

            JsonNode said = expected.get(seq);
            if (said == null) {
                return;
            }
            // What is in no conversation has the corp for its key.
            String conversation = said.path("conversation").isTextual() ? text(said, "conversation") : option("--corp");
            conversationsByKey.computeIfAbsent(key, any -> new TreeSet<>()).add(conversation);
            keysByConversation.computeIfAbsent(conversation, any -> new TreeSet<>()).add(key);
            for (String[] field : FIELDS) {
                if (Set.of("from", "msgtime_ms").contains(field[0]) && text(said, "action").equals("switch")) {
                    // A change of corp has a user and a time in place of these, and the list tells neither.
                    continue;
                }
                String is = event.fields.path(field[0]).isNull() ? "" : flat(event.fields.path(field[0]));
                fields.that(is.equals(flat(said.path(field[1]))), () -> "seq " + seq + ": " + field[0] + " is " + is
                        + ", should be " + flat(said.path(field[1])));
            }
            fields.that(paths(event.fields).equals(paths(said)),
                    () -> "seq " + seq + ": media at " + paths(event.fields) + ", should be " + paths(said));
            bytes.that(sameBytes(event, text(said, "plaintext_sha256"), repaired),
                    () -> "seq " + seq + " (" + text(said, "msgtype") + ") " + at(record));
        });
        // Judged at the end: the partitions' records come in any order, and so would the one that is found odd.
        keysByConversation.forEach((conversation, found) ->
                keys.that(found.size() == 1, () -> "conversation " + conversation + " has the keys " + found));
        conversationsByKey.forEach((key, found) ->
                keys.that(found.size() == 1, () -> "key " + key + " has the conversations " + found));
        bytes.note = repaired.isEmpty() ? "" : "not as they were: " + repaired;
    }

    /**
     * A record has its message's time. Where that cannot be right, it has the newest time before it that can, and says
     * so. When it was pulled is not known here, but that it was after what came before it, and before now. The pull's
     * clock may have been behind or ahead by as much as is told.
     */
    void checkTimestamps() {
        Check right = check("record's timestamp is the message's time, or the newest before it");
        stamps.sort(Comparator.comparingLong(Stamp::seq));
        Set<Long> saidBefore = new HashSet<>();
        long[] newest = {Long.MIN_VALUE};
        long latest = System.currentTimeMillis() + clockAhead.toMillis();
        Set<Long> own = new HashSet<>();
        stamps.stream().filter(stamp -> stamp.from.isEmpty()).forEach(stamp -> own.add(stamp.msgtime));
        TreeMap<Long, JsonNode> said = new TreeMap<>(expected);
        for (Stamp stamp : stamps) {
            while (!said.isEmpty() && said.firstKey() < stamp.seq) {
                saidBefore.add(said.pollFirstEntry().getValue().path("msgtime_ms").asLong(0));
            }
            boolean isRight = switch (stamp.from) {
                case "" -> stamp.timestamp == stamp.msgtime && stamp.msgtime > 0
                        && stamp.msgtime <= latest + AHEAD.toMillis();
                case "topic_limit" -> stamp.timestamp != stamp.msgtime && stamp.timestamp <= latest + AHEAD.toMillis();
                case "newest_message" -> timeIsImpossible(stamp, newest[0], latest)
                        && (newest[0] == Long.MIN_VALUE || stamp.replayed
                                ? own.contains(stamp.timestamp) || saidBefore.contains(stamp.timestamp)
                                        || stamp.timestamp <= latest - WINDOW.toMillis()
                                // A message that was too large for the topic has moved it, too.
                                : stamp.timestamp == newest[0]
                                        || stamp.timestamp > newest[0] && saidBefore.contains(stamp.timestamp));
                default -> false;
            };
            long before = newest[0];
            right.that(isRight, () -> "seq " + stamp.seq + ": timestamp " + stamp.timestamp + " (" + stamp.from
                    + ") of a message of " + stamp.msgtime + ", the newest before it is of " + before + " " + stamp.at);
            if (!stamp.from.equals("newest_message") && !stamp.replayed) {
                newest[0] = Math.max(newest[0], stamp.msgtime);
            }
        }
    }

    boolean timeIsImpossible(Stamp stamp, long newest, long latest) {
        return stamp.msgtime <= 0
                || stamp.msgtime < latest - 2 * WINDOW.toMillis()
                || newest == Long.MIN_VALUE
                || stamp.msgtime > newest + AHEAD.toMillis() - clockBehind.toMillis();
    }

    void readGap(ConsumerRecord<byte[], byte[]> record, JsonNode event) {
        Gap gap = new Gap(event.path("after_seq").asLong(-1), event.path("before_seq").asLong(-1));
        gaps.add(gap);
        count("gaps", "events");
        check("gap events say between which records").that(
                gap.afterSeq >= 0 && gap.afterSeq < gap.beforeSeq
                        && new String(record.key(), StandardCharsets.UTF_8).equals(option("--corp"))
                        && header(record, "ce_dataschema").equals(text(event, "schema")),
                () -> gap + " " + at(record));
    }

    void readDeadLetters() {
        Check reasons = check("dead letters carry their reason and the sealed record");
        read(topic("--dead-letter-topic", "-dead-letters"), (record, partitions) -> {
            if (!new String(record.key(), StandardCharsets.UTF_8).equals(option("--corp"))) {
                return;
            }
            String reason = header(record, "wecom.reason");
            count("dead letters", reason);
            JsonNode sealed = parse(record.value());
            // A record may be bad by having no seq.
            long seq = sealed == null ? -1 : sealed.path("seq").asLong(-1);
            JsonNode said = expected.get(seq);
            if (seq >= 0) {
                links.add(new Link(seq, header(record, "wecom.previous_seq"), at(record)));
            }
            String place = record.topic() + "-" + record.partition() + "@" + record.offset();
            if (Objects.equals(replayed.get(place), seq)) {
                replayed.remove(place);
                count("dead letters", "replayed");
                return;
            }
            deadLettersBySeq.merge(seq, 1, Integer::sum);
            // A malformed record lacks something, by being one.
            boolean whole = reason.equals("malformed") || sealed != null && sealed.has("encrypt_chat_msg")
                    && text(sealed, "msgid").equals(text(said == null ? sealed : said, "msgid"));
            reasons.that(said != null && reason.equals(text(said, "expect")) && whole
                            && !header(record, "__connect.errors.exception.message").isEmpty(),
                    () -> "seq " + seq + ": reason " + reason + ", should be "
                            + (said == null ? "nothing" : text(said, "expect")) + " " + at(record));
        });
        replayed.forEach((place, seq) -> check("every replayed message has the dead letter that it names").that(false,
                () -> "seq " + seq + ": no dead letter of this seq at " + place));
    }

    void checkAllThere() {
        Check there = check("every message is there, once, and nothing else");
        Set<Long> all = new TreeSet<>(expected.keySet());
        all.addAll(messagesBySeq.keySet());
        all.addAll(deadLettersBySeq.keySet());
        for (long seq : all) {
            JsonNode said = expected.get(seq);
            int messages = messagesBySeq.getOrDefault(seq, 0);
            int deadLetters = deadLettersBySeq.getOrDefault(seq, 0);
            if (said != null && isForgotten(said)) {
                there.that(messages + deadLetters == 1 || messages + deadLetters == 0 && isExcused(seq), () -> "seq " + seq
                        + ": " + messages + " messages and " + deadLetters + " dead letters, and no gap that it lies in");
                continue;
            }
            int wantedMessages = said != null && isMessage(said) ? 1 : 0;
            int wantedDeadLetters = said != null && !isMessage(said) ? 1 : 0;
            there.that(messages == wantedMessages && deadLetters == wantedDeadLetters,
                    () -> "seq " + seq + ": " + messages + " messages and " + deadLetters + " dead letters, should be "
                            + wantedMessages + " and " + wantedDeadLetters);
        }
    }

    /** Whether the archive had forgotten the record when the list was made. It may have been pulled before. */
    static boolean isForgotten(JsonNode one) {
        return text(one, "expect").equals("out_of_window");
    }

    /** Whether nobody could have pulled the record: it lies in a gap, or before the first that was. */
    boolean isExcused(long seq) {
        return gaps.stream().anyMatch(gap -> gap.afterSeq < seq && seq < gap.beforeSeq)
                || links.stream().noneMatch(link -> link.seq < seq);
    }

    void checkChain() {
        Check chain = check("every record names the one before it");
        TreeSet<Long> pulled = new TreeSet<>();
        expected.forEach((seq, said) -> {
            if (!isForgotten(said) || messagesBySeq.containsKey(seq) || deadLettersBySeq.containsKey(seq)) {
                pulled.add(seq);
            }
        });
        for (Link link : links) {
            String previous = Objects.toString(pulled.lower(link.seq), "0");
            chain.that(link.previousSeq.equals(previous), () -> "seq " + link.seq + ": previous_seq is "
                    + link.previousSeq + ", should be " + previous + " " + link.at);
        }
    }

    void readOffset() {
        Check offset = check("source offset is the last record's");
        String key = JSON.createArrayNode().add(option("--connector"))
                .add(JSON.createObjectNode().put("corp_id", option("--corp"))).toString();
        byte[][] value = new byte[1][];
        read(option("--offsets-topic"), (record, partitions) -> {
            if (record.key() != null && new String(record.key(), StandardCharsets.UTF_8).equals(key)) {
                value[0] = record.value();
            }
        });
        JsonNode found = value[0] == null ? null : parse(value[0]);
        long last = ((TreeMap<Long, JsonNode>) expected).lastKey();
        offset.that(found != null && found.path("seq").isIntegralNumber() && found.path("seq").asLong() == last,
                () -> "offset of " + key + " is " + found + ", should be seq " + last);
    }

    // Media

    record MediaName(String msgid, String path) {}

    void readMedia() {
        Map<MediaName, JsonNode> wanted = new LinkedHashMap<>();
        for (JsonNode one : expected.values()) {
            for (JsonNode media : one.path("media")) {
                if (isMessage(one)) {
                    wanted.put(new MediaName(text(one, "msgid"), text(media, "path")), media);
                }
            }
        }
        Map<MediaName, Integer> requests = new HashMap<>();
        read(topic("--media-requests-topic", "-media-requests"), (record, partitions) -> {
            JsonNode request = parse(record.value());
            if (request != null && text(request, "corp_id").equals(option("--corp"))) {
                requests.merge(name(request), 1, Integer::sum);
            }
        });
        checkOnceEach("every media file is asked for once", wanted.keySet(), requests);

        Check status = check("references have the status that the file deserves");
        Check objects = check("references resolve, and size, md5 and sha-256 are right");
        Map<MediaName, Integer> references = new HashMap<>();
        Map<String, Content> contents = new HashMap<>();
        read(topic("--media-topic", "-media"), () -> references.keySet().containsAll(wanted.keySet()), (record, partitions) -> {
            JsonNode reference = parse(record.value());
            if (reference == null || !text(reference, "corp_id").equals(option("--corp"))) {
                return;
            }
            references.merge(name(reference), 1, Integer::sum);
            count("media", text(reference, "status"));
            JsonNode media = wanted.get(name(reference));
            if (media == null) {
                return;
            }
            status.that(text(reference, "status").equals(text(media, "expect")), () -> name(reference) + " is "
                    + text(reference, "status") + " (" + text(reference, "reason") + "), should be " + text(media, "expect"));
            if (text(reference, "status").equals("stored")) {
                Content content = contents.computeIfAbsent(text(reference, "uri"), this::load);
                objects.that(content.problem() == null && content.matches(reference) && content.matches(media),
                        () -> name(reference) + ": " + content + " at " + text(reference, "uri") + ", reference says "
                                + Content.of(reference) + ", should be " + Content.of(media));
            }
        });
        objects.note = String.format("%,d objects", contents.size());
        checkOnceEach("every media file has one final reference", wanted.keySet(), references);
    }

    void checkOnceEach(String promise, Collection<MediaName> wanted, Map<MediaName, Integer> found) {
        Check check = check(promise);
        for (MediaName name : wanted) {
            check.that(found.getOrDefault(name, 0) == 1, () -> name + ": " + found.getOrDefault(name, 0) + " times");
        }
        for (MediaName name : found.keySet()) {
            if (!wanted.contains(name)) {
                check.that(false, () -> name + " is in no message");
            }
        }
    }

    static MediaName name(JsonNode event) {
        return new MediaName(text(event, "msgid"), text(event, "path"));
    }

    /** Size and hashes of an object, or why there are none. */
    record Content(long size, String md5, String sha256, String problem) {
        static Content of(JsonNode node) {
            return new Content(node.path("size").asLong(-1), text(node, "md5"), text(node, "sha256"), null);
        }

        boolean matches(JsonNode node) {
            return equals(of(node));
        }

        @Override
        public String toString() {
            return problem != null ? problem : size + " bytes, md5 " + md5 + ", sha256 " + sha256;
        }
    }

    Content load(String uri) {
        try {
            URI parsed = URI.create(uri);
            Path file = switch (Objects.toString(parsed.getScheme(), "")) {
                case "file" -> Path.of(parsed.getPath());
                case "s3" -> Path.of(option("--s3-root"), parsed.getHost(), parsed.getPath());
                default -> throw new IOException("no way to look at " + uri);
            };
            MessageDigest md5 = digest("MD5");
            MessageDigest sha256 = digest("SHA-256");
            long size = 0;
            byte[] buffer = new byte[1 << 16];
            try (InputStream stream = Files.newInputStream(file)) {
                for (int length; (length = stream.read(buffer)) >= 0; size += length) {
                    md5.update(buffer, 0, length);
                    sha256.update(buffer, 0, length);
                }
            }
            return new Content(size, hex(md5.digest()), hex(sha256.digest()), null);
        } catch (IOException | IllegalArgumentException error) {
            return new Content(-1, "", "", error.toString());
        }
    }

    // The event's envelope, with the message left as the bytes that it is

    record Envelope(JsonNode fields, byte[] message) {
        /** Null where the value is no JSON. The tokenizer refuses raw control bytes, as a strict reader downstream would. */
        static Envelope parse(byte[] value) {
            ObjectNode fields = JSON.createObjectNode();
            byte[] message = null;
            try (JsonParser parser = TOKENS.createParser(value)) {
                if (parser.nextToken() != JsonToken.START_OBJECT) {
                    return null;
                }
                while (parser.nextToken() != JsonToken.END_OBJECT) {
                    String name = parser.currentName();
                    parser.nextToken();
                    if (name.equals("message")) {
                        int start = (int) parser.currentTokenLocation().getByteOffset();
                        parser.skipChildren();
                        parser.finishToken();
                        message = Arrays.copyOfRange(value, start, (int) parser.currentLocation().getByteOffset());
                    } else {
                        fields.set(name, JSON.readTree(parser));
                    }
                }
                return parser.nextToken() == null ? new Envelope(fields, message) : null;
            } catch (IOException error) {
                return null;
            }
        }
    }

    /**
     * Whether the spliced message is the decrypted one, byte for byte. Where the event says that the bytes could not stand in JSON
     * as they were, the decrypted message must come out when that is undone.
     */
    static boolean sameBytes(Envelope event, String sha256, Map<String, Long> repaired) {
        if (event.message == null) {
            return false;
        }
        byte[] bytes = event.message;
        if (event.fields.has("original_base64")) {
            repaired.merge("kept as base64", 1L, Long::sum);
            bytes = Base64.getDecoder().decode(text(event.fields, "original_base64"));
        } else if (event.fields.path("control_bytes_escaped").asBoolean()) {
            repaired.merge("control bytes escaped", 1L, Long::sum);
            bytes = unescape(bytes);
        }
        return hex(digest("SHA-256").digest(bytes)).equals(sha256);
    }

    /** Turns the escapes of control bytes, {@code \u0000} to {@code \u001f}, back into the bytes. */
    static byte[] unescape(byte[] text) {
        byte[] bytes = new byte[text.length];
        int length = 0;
        for (int i = 0; i < text.length; i++) {
            bytes[length++] = text[i];
            if (text[i] != '\\') {
                continue;
            }
            if (i + 5 < text.length && text[i + 1] == 'u' && text[i + 2] == '0' && text[i + 3] == '0'
                    && (text[i + 4] == '0' || text[i + 4] == '1')) {
                bytes[length - 1] = (byte) Integer.parseInt(new String(text, i + 4, 2, StandardCharsets.US_ASCII), 16);
                i += 5;
            } else if (i + 1 < text.length) {
                bytes[length++] = text[++i];
            }
        }
        return Arrays.copyOf(bytes, length);
    }

    /** Of a message. */
    boolean headersAreRight(ConsumerRecord<byte[], byte[]> record, JsonNode event) {
        return header(record, "ce_specversion").equals("1.0")
                && header(record, "ce_type").equals(MESSAGE)
                && header(record, "ce_id").equals(event.path("seq").asText())
                && header(record, "ce_source").equals("/wecom/" + option("--corp"))
                && header(record, "ce_subject").equals(text(event, "msgid"))
                && header(record, "ce_dataschema").equals(text(event, "schema"))
                && header(record, "content-type").startsWith("application/json")
                && timeIsRight(header(record, "ce_time"), event.path("msgtime_ms").asLong(0));
    }

    /** A time that is not positive is none. */
    static boolean timeIsRight(String time, long msgtime) {
        try {
            return msgtime <= 0 ? time.isEmpty() : Instant.parse(time).toEpochMilli() == msgtime;
        } catch (DateTimeException error) {
            return false;
        }
    }

    // Kafka

    interface Handler {
        void accept(ConsumerRecord<byte[], byte[]> record, int partitions);
    }

    void read(String topic, Handler handler) {
        read(topic, () -> true, handler);
    }

    /**
     * Reads a topic from its beginning to where it ends now, committed records alone. While there is not {@code enough}, it goes on
     * to later ends, until none has come for the time of {@code --wait}.
     */
    void read(String topic, BooleanSupplier enough, Handler handler) {
        try (KafkaConsumer<byte[], byte[]> consumer =
                new KafkaConsumer<>(client, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<PartitionInfo> found = consumer.partitionsFor(topic);
            if (found == null || found.isEmpty()) {
                throw new IllegalStateException("there is no topic " + topic);
            }
            List<TopicPartition> partitions = found.stream().map(info -> new TopicPartition(topic, info.partition())).toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            long until = System.nanoTime() + wait.toNanos();
            do {
                if (readTo(consumer.endOffsets(partitions), consumer, record -> handler.accept(record, partitions.size()))) {
                    until = System.nanoTime() + wait.toNanos();
                }
            } while (!enough.getAsBoolean() && System.nanoTime() < until);
        }
    }

    /** Reads to these ends; tells whether anything came. */
    static boolean readTo(Map<TopicPartition, Long> ends, KafkaConsumer<byte[], byte[]> consumer,
            Consumer<ConsumerRecord<byte[], byte[]>> handler) {
        long patience = System.nanoTime() + PATIENCE.toNanos();
        boolean any = false;
        do {
            // Also where nothing is left to read: a topic that is waited on is asked again at this pace.
            var records = consumer.poll(Duration.ofMillis(200));
            records.forEach(handler);
            if (!records.isEmpty()) {
                any = true;
                patience = System.nanoTime() + PATIENCE.toNanos();
            } else if (System.nanoTime() > patience) {
                throw new IllegalStateException("nothing more comes before the end " + ends);
            }
        } while (ends.entrySet().stream().anyMatch(end -> consumer.position(end.getKey()) < end.getValue()));
        return any;
    }

    static String header(ConsumerRecord<byte[], byte[]> record, String name) {
        Header header = record.headers().lastHeader(name);
        return header == null || header.value() == null ? "" : new String(header.value(), StandardCharsets.UTF_8);
    }

    static String at(ConsumerRecord<byte[], byte[]> record) {
        return "at " + record.topic() + "-" + record.partition() + "@" + record.offset();
    }

    // Small things

    static JsonNode parse(byte[] value) {
        try {
            return value == null ? null : JSON.readTree(value);
        } catch (IOException error) {
            return null;
        }
    }

    /** A field as text; empty where it is absent or null. */
    static String text(JsonNode node, String field) {
        return node.path(field).asText("");
    }

    static MessageDigest digest(String name) {
        try {
            return MessageDigest.getInstance(name);
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);
        }
    }

    static String hex(byte[] bytes) {
        return HexFormat.of().formatHex(bytes);
    }
}
